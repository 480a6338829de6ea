// Light, dark, or as the system: one button, remembered. Knows nothing else of the page.

const KEY = "stillframe.theme";
const NAMES = { auto: "Auto", light: "Light", dark: "Dark" };
const SAID = { auto: "Auto colours, as the system", light: "Light colours", dark: "Dark colours" };

function stored() {
  try {
    return localStorage.getItem(KEY) ?? "auto";
  } catch {
    return "auto";
  }
}

/** changed() is called after every change of colours. */
export function initTheme(button, changed) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let choice = stored() in NAMES ? stored() : "auto";
  const apply = () => {
    const dark = choice === "dark" || (choice === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.textContent = NAMES[choice];
    button.setAttribute("aria-label", SAID[choice]);
    changed();
  };
  button.addEventListener("click", () => {
    const names = Object.keys(NAMES);
    choice = names[(names.indexOf(choice) + 1) % names.length];
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      // then it holds for this visit
    }
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}
