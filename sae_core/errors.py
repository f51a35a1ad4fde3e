"""Everything that can go wrong for a user, each in one sentence that says what to do.

SaescopeError
├── InputError            what was asked for cannot be done as asked          exit 2, HTTP 422
│   ├── ConfigError       a number or name in a job's settings
│   ├── CorpusError       text that cannot be read, or too little of it
│   ├── ModelError        a model that is absent, gated, or of an unknown kind
│   ├── TrainingError     numbers that cannot be trained on
│   ├── WeightsError      SAE weights that are missing, half-written or misshapen
│   └── PromptError       a probe's text
│       └── PromptTooLongError                                                HTTP 413
├── NotFoundError         an unknown SAE, feature, run or list                 exit 2, HTTP 404
├── ConflictError         what was to be changed has been changed meanwhile    exit 2, HTTP 409
├── ForbiddenError        a change from elsewhere, or without the role for it  exit 2, HTTP 403
├── LoginNeededError      no token, or one that opens nothing                  exit 2, HTTP 401
├── TooManyError          more requests than a client may make                 exit 1, HTTP 429
├── StoreError            the database                                         exit 1, HTTP 503
│   ├── NewerDatabaseError  written by a later version of saescope
│   └── OlderDatabaseError  written by an older one, to be upgraded
├── DiskFullError                                                              exit 1, HTTP 507
├── OutOfMemoryError      memory, of the machine or the GPU                    exit 1, HTTP 507
├── RanksError            a process of a distributed job is gone               exit 1, HTTP 503
└── BusyError             the model worker or the port is taken                exit 1, HTTP 503
"""


class SaescopeError(Exception):
    """Base of all errors that are shown to a user as one sentence."""

    exit_code = 1
    http_status = 500


class InputError(SaescopeError):
    exit_code = 2
    http_status = 422


class ConfigError(InputError):
    pass


class CorpusError(InputError):
    pass


class ModelError(InputError):
    pass


class TrainingError(InputError):
    pass


class WeightsError(InputError):
    pass


class PromptError(InputError):
    pass


class PromptTooLongError(PromptError):
    http_status = 413


class NotFoundError(SaescopeError):
    exit_code = 2
    http_status = 404


class ConflictError(SaescopeError):
    exit_code = 2
    http_status = 409


class ForbiddenError(SaescopeError):
    exit_code = 2
    http_status = 403


class LoginNeededError(SaescopeError):
    exit_code = 2
    http_status = 401


class TooManyError(SaescopeError):
    http_status = 429


class StoreError(SaescopeError):
    http_status = 503


class NewerDatabaseError(StoreError):
    pass


class OlderDatabaseError(StoreError):
    pass


class DiskFullError(SaescopeError):
    http_status = 507


class OutOfMemoryError(SaescopeError):
    http_status = 507


class RanksError(SaescopeError):
    http_status = 503


class BusyError(SaescopeError):
    http_status = 503
