// Keeps the page as it is now while somebody looks at it. Only what differs is touched, so that scroll position, focus,
// selection and what is unfolded stay. Without script the page loads itself anew instead.
"use strict";
{
  const EVERY = 3000;
  const PATIENCE = 10000;
  let timer;
  let asking = false;

  const refresh = () => {
    asking = true;
    const request = new XMLHttpRequest();
    request.open("GET", "/");
    request.responseType = "document";
    request.timeout = PATIENCE;
    request.onload = () => {
      if (request.status === 200 && request.responseXML?.getElementById("at")) show(request.responseXML);
      else miss(`what answers, with status ${request.status}, is not this page`);
    };
    request.onerror = () => miss("it is not there");
    request.ontimeout = () => miss("it does not answer in time");
    request.onloadend = () => {
      asking = false;
      timer = setTimeout(look, EVERY);
    };
    request.send();
  };

  // Nobody needs news of a page that nobody sees.
  const look = () => {
    clearTimeout(timer);
    if (!document.hidden && !asking) refresh();
  };

  const show = (news) => {
    // Another version of the daemon has another style and another script.
    const version = (page) => page.querySelector("link[rel=stylesheet]").getAttribute("href");
    if (version(document) !== version(news)) return location.reload();
    const focused = document.activeElement;
    for (const part of ["header", "main", "footer"]) become(document.querySelector(part), news.querySelector(part));
    if (focused.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
    document.title = news.title;
  };

  const miss = (why) => {
    const since = document.getElementById("at").textContent;
    const away = document.getElementById("away");
    const text = `no answer from the daemon since ${since} UTC: ${why}. What follows is from then.`;
    if (away.textContent !== text) away.textContent = text;
    away.hidden = false;
    document.title = "no answer · tunnelkeeper";
  };

  const become = (old, wanted) => {
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== wanted.data && !isSelected(old)) old.data = wanted.data;
      return;
    }
    for (const { name, value } of wanted.attributes) {
      if (old.getAttribute(name) !== value && !isReaders(old, name)) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!wanted.hasAttribute(name) && !isReaders(old, name)) old.removeAttribute(name);
    }
    let next = old.firstChild;
    for (const child of wanted.childNodes) {
      const same = sameAmong(next, child);
      if (same) {
        while (next !== same) next = without(next);
        become(same, child);
        next = same.nextSibling;
      } else {
        old.insertBefore(document.importNode(child, true), next);
      }
    }
    while (next) next = without(next);
  };

  // What is unfolded is the reader's choice.
  const isReaders = (element, attribute) => element.nodeName === "DETAILS" && attribute === "open";

  const isSelected = (text) => {
    const selection = getSelection();
    return !selection.isCollapsed && selection.containsNode(text, true);
  };

  // The next sibling that stands for the same thing: what has an id is that wherever it stands.
  const sameAmong = (node, wanted) => {
    const isSame = (other) => other.nodeName === wanted.nodeName && (other.id || "") === (wanted.id || "");
    if (!wanted.id) return node && isSame(node) ? node : null;
    while (node && !isSame(node)) node = node.nextSibling;
    return node;
  };

  const without = (node) => {
    const next = node.nextSibling;
    node.remove();
    return next;
  };

  document.addEventListener("visibilitychange", look);
  timer = setTimeout(look, EVERY);
}
