// Keeps all files of the page, so that it works offline, and marks it as isolated, which threads need.
// FILES, path to hash, stands before these lines: `cris-export web` writes it.

const STORE = `cris-${Object.values(FILES).join("").slice(0, 4096).split("").reduce((sum, c) => (sum * 31 + c.charCodeAt(0)) >>> 0, 7)}`;

addEventListener("install", (event) => {
  event.waitUntil(caches.open(STORE).then((store) => store.addAll(Object.keys(FILES))).then(() => skipWaiting()));
});

addEventListener("activate", (event) => {
  event.waitUntil(
    caches.keys()
      .then((names) => Promise.all(names.filter((name) => name.startsWith("cris-") && name !== STORE).map((name) => caches.delete(name))))
      .then(() => clients.claim()),
  );
});

addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== location.origin) return;
  const path = url.pathname.slice(new URL(registration.scope).pathname.length) || "index.html";
  if (!(path in FILES)) return;
  event.respondWith(
    caches.open(STORE)
      .then((store) => store.match(path))
      .then((kept) => kept ?? fetch(event.request))
      .then((answer) => {
        const headers = new Headers(answer.headers);
        headers.set("Cross-Origin-Opener-Policy", "same-origin");
        headers.set("Cross-Origin-Embedder-Policy", "require-corp");
        return new Response(answer.body, { status: answer.status, headers });
      }),
  );
});
