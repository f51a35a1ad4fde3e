// A feature that is being labelled in the background: loads the page again when that is done.

const place = document.querySelector("[data-working-url]");

async function look() {
  try {
    const answer = await fetch(place.dataset.workingUrl);
    const { work } = await answer.json();
    if (answer.ok && !work?.is_running) return location.reload();
  } catch {
    // The server may be starting again; the link beside does the same by hand.
  }
  setTimeout(look, 1500);
}

if (place) setTimeout(look, 700);
