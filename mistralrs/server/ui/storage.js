// Small values that outlive a reload: of this tab (the key) or of this browser (settings). Where the browser refuses
// storage they live as long as the page.

const kept = new Map();

function area(name) {
  try {
    return window[name];
  } catch {
    return null;
  }
}

function store(name) {
  return {
    /** Returns the text under a name, or null. */
    get(key) {
      return area(name)?.getItem(`mistralrs.${key}`) ?? kept.get(`${name}.${key}`) ?? null;
    },

    /** Keeps a text under a name; null forgets it. */
    set(key, text) {
      kept.delete(`${name}.${key}`);
      try {
        if (text === null) area(name)?.removeItem(`mistralrs.${key}`);
        else area(name).setItem(`mistralrs.${key}`, text);
      } catch {
        kept.set(`${name}.${key}`, text);
      }
    },
  };
}

export const tabStore = store("sessionStorage");
export const browserStore = store("localStorage");
