"""What the pages' words mean: one dictionary for the glossary page and for every tooltip.

What is measured is defined in `sae_core.metrics`, and only quoted here.
"""

from dataclasses import dataclass

from sae_core.metrics import DEFINITIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A word, what it means in one or two sentences, and its formula where it has one."""

    name: str
    meaning: str
    formula: str | None = None


TERMS: dict[str, Term] = {
    "sae": Term(
        name="SAE (sparse autoencoder)",
        meaning="A small network that rewrites a language model's inner vectors as a sum of a few out of many learned "
        "directions. Each direction is a feature.",
    ),
    "feature": Term(
        name="feature",
        meaning="One unit of an SAE: a direction in the model's activation space, and how strongly each token points "
        "along it. Elsewhere also called a latent.",
    ),
    "activation": Term(
        name="activation",
        meaning="How strongly one feature responds to one token; 0 when it is not active. On these pages orange always "
        "means activation: the stronger, the more orange.",
    ),
    "density": Term(
        name="density",
        meaning=DEFINITIONS["density"],
        formula="tokens with activation > 0 / all indexed tokens",
    ),
    "max": Term(name="max", meaning="The largest activation of a feature on any token of the corpus."),
    "mean": Term(
        name="mean when active", meaning="The average activation of a feature over the tokens on which it is active."
    ),
    "encoder_decoder": Term(
        name="encoder·decoder",
        meaning=DEFINITIONS["encoder_decoder"],
        formula="cos(W_enc[:, i], W_dec[i])",
    ),
    "dead": Term(name="dead", meaning=DEFINITIONS["dead"]),
    "alive": Term(name="alive", meaning="The share of features that were active on at least one token of the corpus."),
    "dense": Term(
        name="dense",
        meaning=DEFINITIONS["dense"],
    ),
    "l0": Term(
        name="L0",
        meaning=DEFINITIONS["l0"],
        formula="mean over tokens of |{i : activation_i > 0}|",
    ),
    "fvu": Term(
        name="FVU",
        meaning=DEFINITIONS["fvu"],
        formula="Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ over the whole evaluation set",
    ),
    "explained_variance": Term(
        name="explained variance",
        meaning=DEFINITIONS["explained_variance"],
        formula="1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ over the whole evaluation set",
    ),
    "cosine": Term(name="cosine", meaning=DEFINITIONS["cosine"], formula="mean over tokens of x·x̂ / (‖x‖ ‖x̂‖)"),
    "reconstruction_bias": Term(
        name="relative bias", meaning=DEFINITIONS["reconstruction_bias"], formula="Σ‖x̂‖² / Σ x·x̂"
    ),
    "ce_recovered": Term(
        name="CE recovered",
        meaning=DEFINITIONS["ce_recovered"],
        formula="(CE with zeros − CE with SAE) / (CE with zeros − CE)",
    ),
    "ce_loss": Term(
        name="CE loss", meaning=DEFINITIONS["ce_loss"], formula="mean of −ln p(next token), in nats per token"
    ),
    "ce_loss_with_sae": Term(name="CE loss with SAE", meaning=DEFINITIONS["ce_loss_with_sae"]),
    "ce_loss_with_zeros": Term(name="CE loss with zeros", meaning=DEFINITIONS["ce_loss_with_zeros"]),
    "kl": Term(
        name="KL",
        meaning=DEFINITIONS["kl"],
        formula="mean over tokens of Σ_v p(v) ln(p(v) / q(v)), p the model, q the model with the SAE in place",
    ),
    "hook": Term(
        name="hook",
        meaning="The place in the model where vectors are read: blocks.3.hook_resid_post is the residual stream after "
        "block 3, counting from 0.",
    ),
    "layer": Term(name="layer", meaning="The block of the model whose vectors are read, counting from 0."),
    "d_sae": Term(name="d_sae", meaning="The width of an SAE: how many features it has."),
    "d_in": Term(name="d_in", meaning="The width of the model's vectors that the SAE reads."),
    "k": Term(name="k", meaning="How many features a TopK SAE lets be active on each token."),
    "promotes": Term(
        name="promotes",
        meaning="Tokens that the model becomes more likely to say next when this feature is active: the feature's "
        "direct effect on the output, in logits per unit of activation, through no later block.",
        formula="largest entries of W_dec[i] @ W_U",
    ),
    "suppresses": Term(
        name="suppresses",
        meaning="Tokens that the model becomes less likely to say next when this feature is active, by the same "
        "direct path.",
        formula="smallest entries of W_dec[i] @ W_U",
    ),
    "nearest": Term(
        name="nearest",
        meaning="The features of this SAE whose decoder directions are most alike, with their cosine.",
        formula="cos(W_dec[i], W_dec[j])",
    ),
    "map": Term(
        name="map",
        meaning="All features of an SAE in the plane, made from each one's nearest features by t-SNE. What lies close "
        "together mostly writes in a like direction; the distance between what is far apart, and which way is up, mean "
        "little.",
    ),
    "fires_on": Term(
        name="fires on",
        meaning="The tokens on which this feature fires, by their share of its activation, counted on up to 100 "
        "firings that were drawn at random from all.",
        formula="Σ activation on the token ÷ Σ activation, over the sample",
    ),
    "around": Term(
        name="before and after",
        meaning="The tokens that most often stand just before and just after this feature's firings, counted on the "
        "same firings drawn at random.",
    ),
    "coactive": Term(
        name="active with",
        meaning="The features that are most often active on the same tokens, on a sample of up to 65,536 tokens: "
        "of the tokens on which either of the two is active, the share on which both are.",
        formula="Jaccard index: both ÷ either",
    ),
    "confidence": Term(
        name="confidence",
        meaning="How much of what a feature does its automatic label covers, counted on the corpus. For tokens it is "
        "their share of the activation; for what comes before or after, and for promoted tokens, the share of firings "
        "where it does; for positions the share of firings there; for dense features the density.",
    ),
    "copies": Term(
        name="copies",
        meaning="How many places of the corpus read the same around the peak (8 tokens before it, one after). They are "
        "shown once, where the activation is largest.",
    ),
    "direction_cosine": Term(
        name="cosine of directions",
        meaning="How alike the directions are that two features write: 1 is the same direction, 0 a right angle. Read "
        "from the weights; features of two SAEs can be compared where both read the same place of the same model.",
        formula="cos(W_dec[a], W_dec[b])",
    ),
    "match": Term(
        name="match",
        meaning="The feature of the other SAE whose decoder direction is closest. It counts as a match if the cosine "
        "is at least the one that is stated; only features that are alive are asked and answered with.",
        formula="max over j of cos(W_dec[i], W_dec'[j])",
    ),
    "chance": Term(
        name="chance",
        meaning="The best cosine that a direction would find among as many directions drawn at random: what two SAEs "
        "that have learned nothing alike would show.",
    ),
    "shared_contexts": Term(
        name="shared contexts",
        meaning="Contexts that are among the stored examples of both features. Only examples are looked at, not the "
        "whole corpus: features without a shared context may still fire on the same tokens.",
    ),
    "logit_difference": Term(
        name="difference of logit attribution",
        meaning="How much more one feature promotes a token than the other, in logits per unit of activation. Of each "
        "feature only its most promoted and most suppressed tokens are stored: where a token is stored of one "
        "alone, the difference is a bound (“at least”).",
        formula="(W_dec[a] − W_dec[b]) @ W_U",
    ),
    "density_ratio": Term(
        name="density ratio",
        meaning="How many times more often a feature fires on one corpus than on the other, half a token added to each "
        "count. Left out are features with fewer than 10 expected firings on either corpus.",
        formula="((firings + ½) / (tokens + 1)) ÷ the same on the other",
    ),
    "z": Term(
        name="z",
        meaning="How many standard errors two densities are apart, by the test of two proportions. Firings stand in "
        "clumps, as one document is about one thing, so that z is larger than it should be: 5 is asked for.",
        formula="(p_a − p_b) / √(p (1 − p) (1/n_a + 1/n_b)), p over both corpora",
    ),
    "front": Term(
        name="front",
        meaning="The SAEs that no other beats: none has at most as many active features and a better value (Pareto "
        "front). The further down an FVU, the further up CE recovered, and the further left, the better.",
    ),
    "context": Term(name="context", meaning="A run of tokens from the corpus that was fed to the model at once."),
    "example": Term(name="example", meaning="One feature on one context, with its activation on every token."),
    "band": Term(
        name="band",
        meaning="An octave of activation: the strongest band reaches from a power of two up to the feature's max, each "
        "other is half as strong as the one above it, and the weakest has all the rest. Examples are drawn at "
        "random from every band, so that a reader sees weak activations too and not only the best.",
    ),
    "random_firings": Term(
        name="random firings",
        meaning="Examples drawn at random from all tokens on which the feature is active: what it usually does.",
    ),
    "corpus": Term(name="corpus", meaning="The text on which features were measured and from which examples come."),
    "index": Term(name="index", meaning="One SAE measured on one corpus: densities, maxima and examples."),
    "probe": Term(name="probe", meaning="Running your own text through the model and the SAE to see what is active."),
    "rarity": Term(
        name="rarity",
        meaning="Orders the features of a text by how far each rises towards the largest activation known of it, "
        "weighed by how seldom it is active on the corpus: features that are active everywhere fall back.",
        formula="max in the text / max known · log2(1 / density)",
    ),
    "surprise": Term(
        name="surprise",
        meaning="How unexpected a token was to the model itself, given all before it, in bits: 0 when it was certain, "
        "one more for every halving of the probability that it gave.",
        formula="−log2 p(token | tokens before it)",
    ),
    "expected": Term(
        name="what the model expects next",
        meaning="The tokens that the whole language model finds likeliest after the chosen one, with their "
        "probabilities. No SAE is involved.",
    ),
    "trace": Term(
        name="trace",
        meaning="A feature's activation on every token of a text, from left to right, so that several can be compared.",
    ),
    "special_tokens": Term(
        name="special tokens",
        meaning="Tokens that mark a place and are no text, like the one at the beginning (BOS). Vectors there are "
        "often huge and their features say little about a text, so they are left out of an index and of a probe.",
    ),
    "delta": Term(
        name="effect (Cliff's delta)",
        meaning="How far a feature tells the texts of A from those of B: how much likelier it is that a text of A has "
        "the larger activation than that a text of B has. 1: all of A above all of B; 0: no difference; −1: the other "
        "way round.",
        formula="P(a > b) − P(a < b) over all pairs of texts, by their largest activation",
    ),
    "q": Term(
        name="q",
        meaning="How likely chance is behind a difference, where thousands of features are looked at at once: of the "
        "features with q below 5%, one in twenty is expected to differ by chance alone.",
        formula="Benjamini and Hochberg's adjustment of the Mann-Whitney test's p",
    ),
    "label": Term(name="label", meaning="What a feature is called, and whether a person or a program says so."),
    "run": Term(
        name="run",
        meaning="One SAE's training, or the making of its index on one corpus. A stopped one that goes on is the same.",
    ),
    "loss": Term(
        name="loss",
        meaning="What training makes small: the squared error over the variance of the batch, and what the "
        "architecture adds to it for sparsity. Averaged over the steps since the point before.",
    ),
    "dead_in_training": Term(
        name="dead in training",
        meaning="The share of features that were active on none of the tokens trained on last: a 64th of the whole "
        "run, unless --dead-after-tokens says otherwise. Of them, some are active somewhere on the indexed corpus.",
    ),
    "vector": Term(
        name="vector",
        meaning="The list of numbers that a model holds for one token at one place. Papers call these numbers the "
        "model's activations; on these pages an activation is always a feature's.",
    ),
    "neuron": Term(name="neuron", meaning="One number of a model's vector, always at the same place of it."),
    "superposition": Term(
        name="superposition",
        meaning="A model that knows more things than its vectors have numbers gives things directions that overlap. It "
        "can, as only few of them matter on one token.",
    ),
    "residual_stream": Term(
        name="residual stream",
        meaning="The vector of a token that runs through the whole model: every block reads it and adds to it.",
    ),
    "direction": Term(
        name="decoder direction",
        meaning="What a feature writes: a vector of length 1. An activation of 3 adds it three times.",
        formula="W_dec[i]",
    ),
    "b_dec": Term(
        name="b_dec",
        meaning="A vector that the SAE adds on every token, whatever its features do: near the average vector.",
    ),
    "reconstruction": Term(
        name="reconstruction",
        meaning="The vector that an SAE puts together from b_dec and the active features.",
        formula="x̂ = b_dec + Σ activation_i · W_dec[i]",
    ),
    "error_left": Term(
        name="error left",
        meaning="How much of a token's vector the reconstruction misses, as a share of the vector's squared length. "
        "Unlike FVU it is of one token, and no average vector is subtracted: so the two compare only roughly.",
        formula="‖x − x̂‖² / ‖x‖²",
    ),
    "share_of_vector": Term(
        name="share of vector",
        meaning="How far what is added reaches along the token's own vector. The shares of b_dec, of all active "
        "features and of what is left over make 100%; a negative one points against the vector.",
        formula="(activation_i · W_dec[i]) · x / ‖x‖²",
    ),
    "transcoder": Term(
        name="transcoder",
        meaning="An SAE that reads one place of the model and reconstructs another: what a part of it computes.",
    ),
    "label_score": Term(
        name="score of a label",
        meaning="How well a label tells texts apart that it was not made from: the mean of the share of right answers "
        "where the answer is yes and where it is no (balanced accuracy). 1 is perfect, a coin gets 0.5. An answer that "
        "cannot be read counts as wrong.",
        formula="(right among true / true + right among false / false) / 2",
    ),
    "label_baseline": Term(
        name="another's",
        meaning="The score that another feature's label gets on the same texts: what a label reaches that has nothing "
        "to do with this feature.",
    ),
    "above_baseline": Term(
        name="above chance",
        meaning="The share of scored features whose label scores higher than 95% of other features' labels do on the "
        "same texts: luck alone gives 5%. The range holds the share of all features 95 times of 100.",
    ),
    "basis": Term(
        name="basis",
        meaning="Directions that were not trained: the neurons of the MLP in the SAE's layer, the coordinates of the "
        "vectors that the SAE reads, which are neurons of nothing in a residual stream, or their principal components "
        "(pca); either sign a feature, as many active on a token as in the SAE beside it.",
    ),
    "similarity": Term(
        name="similarity",
        meaning="The cosine of two labels' vectors, as an embedding model gives them: 1 for the same text. What is "
        "high depends on the model; compare within one search.",
    ),
    "label_precision": Term(name="precision", meaning="Of the texts for which the label says yes, the share that are."),
    "label_recall": Term(name="recall", meaning="Of the texts where yes is right, the share for which it says yes."),
    "unparsed": Term(
        name="unreadable answers",
        meaning="Texts for which the language model gave no answer that could be read. They count as wrong.",
    ),
    "detection": Term(
        name="detection",
        meaning="In which texts does the feature fire at all? Half of the texts without a firing hold one of a near or "
        "co-active feature, so that a label must be exact.",
    ),
    "fuzzing": Term(
        name="fuzzing",
        meaning="In texts in which the feature fires, tokens are marked: its own, or as many others. Are the right "
        "ones marked?",
    ),
    "certainty": Term(
        name="certainty",
        meaning="How sure the language model that wrote a label says it is. It has not been measured: the score has.",
    ),
    "pattern": Term(
        name="pattern",
        meaning="Words, with ∗ for any, that end where the feature fires: fitted to its examples without a language "
        "model, and tested on others.",
    ),
    "label_correlation": Term(
        name="correlation",
        meaning="Pearson's, between the activations that a pattern predicts token by token and the true ones.",
    ),
    "logit": Term(
        name="logit",
        meaning="The number that the model gives to each token that may come next. The larger it is against the "
        "others, the more probable the token: one more multiplies the odds by 2.7.",
        formula="p(v) = exp(logit_v) / Σ exp(logit)",
    ),
    "why_direct": Term(
        name="direct effect",
        meaning="What a part of the chosen token's vector adds to the logit by itself, straight to the output and "
        "through no later block. The final norm divides by the vector's size; that size is held at what it is.",
        formula="activation · (W_dec[i] through the final norm) · W_U[target]",
    ),
    "why_total": Term(
        name="total effect",
        meaning="What a feature adds to the logit by every way through the later blocks and from every token, as far "
        "as the model is a straight line around this text: its activation times the gradient along its direction. "
        "Taking the feature out is predicted to change the logit by as much, the other way.",
        formula="Σ over tokens of activation · (gradient · W_dec[i])",
    ),
    "why_error": Term(
        name="reconstruction error",
        meaning="What the SAE does not express of the vectors: it stays in the model, and has an effect like a "
        "feature. Where it is large the features do not tell the whole story.",
        formula="Σ over tokens of gradient · (x − x̂)",
    ),
    "why_bias": Term(name="b_dec", meaning="The SAE's constant vector, the same for every token, as one more part."),
    "why_special": Term(
        name="special tokens",
        meaning="The vectors of BOS and its like. The SAE never reads such tokens, so they are one part as they are.",
    ),
    "why_rest": Term(
        name="the rest",
        meaning="What is needed to make up the logit. Of total effects: what does not follow the vectors in a straight "
        "line, such as biases and all that bends. Of direct effects: what the model's other parts add.",
    ),
    "why_others": Term(name="other features", meaning="The features that are not listed, added up."),
    "ablate": Term(
        name="taking out",
        meaning="The model is run again, and on every token up to the chosen one what the features add is subtracted. "
        "This is a measurement; total effects only predict it.",
        formula="x − Σ activation · W_dec[i]",
    ),
    "kl_change": Term(
        name="KL from before",
        meaning="How far the whole distribution of the next token has moved, in nats: 0 is not at all, 1 is a lot.",
        formula="Σ_v p(v) ln(p(v) / q(v)), p before, q after",
    ),
    "steer": Term(
        name="steer",
        meaning="Let the model write while a feature is pushed up or down, and compare with what it writes by itself.",
    ),
    "steer_add": Term(
        name="add",
        meaning="Adds a multiple of the feature's direction to the model's vectors. Strength 1 adds as much as the "
        "feature does where it is strongest; a negative strength pushes the other way.",
        formula="x + strength · max · W_dec[i]",
    ),
    "steer_clamp": Term(
        name="set",
        meaning="Moves the vectors along the feature's direction until the encoder reads the value that was set, "
        "wherever that is nearer or further than before. At 0 it only acts where the feature is active.",
        formula="x + δ · W_dec[i], with activation(x + δ · W_dec[i]) = strength · max",
    ),
    "strength": Term(
        name="strength",
        meaning="How hard a feature is pushed, in units of its own maximum on the corpus; 1 is the strongest it was.",
    ),
    "dose": Term(name="dose", meaning="A share of the whole push: ½ is half of every strength, 2 is twice."),
    "push_ratio": Term(
        name="push against vector",
        meaning="How long the change is, over the length of the vector that it changes; the mean over the changed "
        "tokens. Others find that about half is often best; from 1 on the push is longer than what it is added to.",
        formula="mean of ‖push‖ / ‖x‖",
    ),
    "control": Term(
        name="control",
        meaning="A push of the same length on every token in a direction drawn at random. What the control does too is "
        "the effect of a push, not of this feature.",
    ),
    "written_surprise": Term(
        name="surprise of the text",
        meaning="How unlikely the written text is to the model when nothing is pushed, per token. Far above the "
        "baseline's, the text is broken rather than changed.",
        formula="mean of −ln p(token), in nats",
    ),
    "repeats": Term(
        name="repeats",
        meaning="The share of pairs of neighbouring tokens that were written before. Pushed too hard, models go round "
        "in circles.",
        formula="1 − distinct pairs / pairs",
    ),
    "read_back": Term(
        name="activation, before and after",
        meaning="What the encoder reads of the feature just before the change and just after it, at the same place: "
        "the mean over the changed tokens.",
    ),
    "temperature": Term(
        name="temperature",
        meaning="How freely tokens are drawn: 0 always takes the likeliest, 1 draws as often as the model says.",
    ),
    "top_p": Term(
        name="top-p", meaning="Only the likeliest tokens that make up this share of the probability are drawn from."
    ),
    "seed": Term(
        name="seed",
        meaning="The number that decides all draws. All columns share them, so that texts differ only where the "
        "model's probabilities do.",
    ),
}
