// The page of many texts: files are read into the boxes, and the texts run while a bar shows how far they are.

const form = document.getElementById("texts");
const result = document.getElementById("result");
const running = document.getElementById("running");
const [bar, said] = [running.querySelector("progress"), running.querySelector("[role=status]")];
let controller = null;

for (const input of form.querySelectorAll("input[type=file]")) {
  input.closest("label").hidden = false;
  input.addEventListener("change", async () => {
    if (input.files[0]) document.getElementById(input.dataset.into).value = await input.files[0].text();
  });
}

function problem(sentence) {
  const line = document.createElement("p");
  line.className = "problem";
  line.setAttribute("role", "status");
  line.textContent = sentence;
  result.replaceChildren(line);
}

function heard(news) {
  if (news.html !== undefined) {
    result.replaceChildren(...new DOMParser().parseFromString(news.html, "text/html").body.childNodes);
  } else {
    bar.max = news.of;
    bar.value = news.done;
    said.textContent = `${news.done} of ${news.of} texts`;
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  controller?.abort();
  const mine = controller = new AbortController();
  const asked = Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string"));
  running.hidden = false;
  bar.removeAttribute("value");
  said.textContent = "The first texts wait for the model…";
  try {
    const response = await fetch(form.dataset.liveUrl, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked), signal: mine.signal,
    });
    if (!response.ok) {
      const text = await response.text();
      problem(new DOMParser().parseFromString(text, "text/html").querySelector("main p")?.textContent ?? (response.status === 413 ? "These texts are more than this server reads at once; leave some out." : "The server failed on this; its log has the details."));
    } else {
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const lines = (rest + part.value).split("\n");
        rest = lines.pop();
        for (const line of lines) heard(JSON.parse(line));
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") problem("The server did not answer: is it still running?");
  }
  if (mine === controller) running.hidden = true;
});
