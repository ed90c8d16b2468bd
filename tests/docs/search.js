// What the search of a built site finds: `node search.js SITE QUERY ...` prints a list of results per query, best first.
"use strict";
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [site, ...queries] = process.argv.slice(2);
// Without a browser: the search itself asks for no more of a page than an element that it could empty.
const page = vm.createContext({
  document: { readyState: "loading", addEventListener: () => {}, getElementById: () => null },
  SPHINX_HIGHLIGHT_ENABLED: false,
});
page.window = page;

const scripts = ["doctools", "documentation_options", "language_data", "searchtools"].map((name) => `_static/${name}.js`);
for (const file of [...scripts, "searchindex.js"]) {
  vm.runInContext(fs.readFileSync(path.join(site, file), "utf8"), page, { filename: file });
}
for (const query of queries) {
  page.query = query;
  const found = vm.runInContext("Search._performSearch(...Search._parseQuery(query))", page);
  console.log(JSON.stringify(found.reverse().map(([page, , anchor]) => page + anchor)));
}
