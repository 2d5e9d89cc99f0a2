// Keys for the rating page, and no click on an answer that is not there yet.
(() => {
  const buttons = {
    1: "final-1", 0: "final-0", q: "reasoning-1", w: "reasoning-0",
    Enter: "go-next", Backspace: "go-previous", u: "go-unrated",
  };
  const shown = () => document.querySelector("#case [data-shown]")?.dataset.shown;
  const image = () => document.querySelector("#image img");
  let left = null;
  let since = 0;

  // From "next" until the next answer is shown, a score would go to the one before it.
  const waiting = () => left !== null && shown() === left && Date.now() - since < 10000;

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#controls button");
    if (button) {
      if (waiting()) {
        event.stopPropagation();
        event.preventDefault();
      } else if (button.id.startsWith("go-")) {
        left = shown();
        since = Date.now();
      }
    } else if (event.target === image()) {
      image().classList.toggle("large");
    }
  }, true);

  // Another answer is read from its top.
  let seen;
  new MutationObserver(() => {
    if (shown() !== seen) {
      seen = shown();
      window.scrollTo(0, 0);
    }
  }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const field = document.querySelector("#comment textarea, #comment input");
    if (event.target === field && field) {
      if (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey)) {
        event.preventDefault();
        field.blur();
      }
      return;
    }
    if (!shown() || event.target.closest?.("input, textarea, select, [contenteditable]")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const button = buttons[key] && document.getElementById(buttons[key]);
    if (button) {
      event.preventDefault();
      if (!event.repeat && button.offsetParent) button.click();
    } else if (key === "c" && field) {
      event.preventDefault();
      field.focus();
    } else if (key === "z") {
      image()?.classList.toggle("large");
    } else if (key === "Escape") {
      image()?.classList.remove("large");
    }
  });
})();
