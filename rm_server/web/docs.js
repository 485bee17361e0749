/** The page `/docs`: the server's OpenAPI document, laid out for reading. What it says is written in Python, beside the routes. */

import { curlLines, typeOf } from "./openapi.js";
import { byId, element } from "./elements.js";

async function start() {
  try {
    const answer = await fetch(new URL("openapi.json", document.baseURI));
    if (!answer.ok) throw new Error(`openapi.json: ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    byId("problem").textContent = `The description cannot be read: ${error.message}`;
  }
}

function show(document) {
  const routes = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
  );
  byId("contents").append(...routes.map(({ path, method }) => element("a", { href: `#${anchor(method, path)}` }, `${method} ${path}`)));
  byId("routes").append(...routes.map(routeSection));
  const schemas = Object.entries(document.components.schemas);
  byId("replies").append(...schemas.flatMap(([name, schema]) => schemaParts(name, schema)));
  byId("replies").hidden = false;
  byId("problems").append(problemTable(routes[0].operation.responses));
  byId("problems").hidden = false;
  if (location.hash) byId(location.hash.slice(1))?.scrollIntoView();
}

function routeSection({ path, method, operation }) {
  const { description, parameters = [], requestBody, responses } = operation;
  const said = Object.keys(responses["200"]?.content ?? {}).join(", ");
  const schema = Object.values(responses["200"]?.content ?? {})[0]?.schema;
  return element(
    "section",
    { class: "route", id: anchor(method, path) },
    element("h2", {}, element("span", { class: "method" }, method), " ", element("code", {}, path)),
    ...plainText(description).split(/\n\n+/).map((paragraph) => element("p", {}, paragraph)),
    ...curlLines(method, path, requestBody).map(({ title, command }) =>
      element("div", {}, element("h3", {}, title), element("pre", { tabIndex: 0 }, element("code", {}, command))),
    ),
    ...(parameters.length ? [element("h3", {}, "Parameters"), parameterTable(parameters)] : []),
    ...(said ? [element("h3", {}, "Answer"), element("p", {}, typeText(schema), element("span", { class: "hint" }, ` ${said}`))] : []),
  );
}

function parameterTable(parameters) {
  const rows = parameters.map(({ name, in: place, schema, required }) => [
    element("code", {}, name),
    ...[`${place}${required ? ", required" : ""}`, typeText(schema)],
    schema.default === undefined ? "" : element("code", {}, JSON.stringify(schema.default)),
    plainText(schema.description),
  ]);
  return table(["Name", "Where", "Type", "Default", "Meaning"], rows);
}

function schemaParts(name, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([field, property]) => [
    element("code", {}, field),
    typeText(property),
    plainText(property.description),
  ]);
  return [
    element("h3", { id: name }, name),
    element("p", {}, plainText(schema.description)),
    table(["Field", "Type", "Meaning"], rows),
  ];
}

function problemTable(responses) {
  const rows = Object.entries(responses)
    .filter(([status]) => status !== "200")
    .map(([status, response]) => {
      const example = Object.values(response.content ?? {})[0]?.example ?? {};
      return [status, element("code", {}, example.type ?? ""), example.title ?? response.description, example.detail ?? ""];
    });
  return table(["Status", "Type", "Title", "A detail, for one"], rows);
}

/** A type in words; named ones lead to their description. */
function typeText(schema) {
  const { words, name } = typeOf(schema);
  return name ? element("span", {}, words, element("a", { href: `#${name}` }, name)) : element("span", {}, words);
}

/** A description without its marks of code. */
function plainText(description = "") {
  return description.replaceAll("``", "");
}

function table(heads, rows) {
  const cells = (tag, row) => row.map((cell) => element(tag, {}, cell));
  return element(
    "div",
    { class: "scroll", tabIndex: 0 },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...cells("th", heads))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row)))),
    ),
  );
}

function anchor(method, path) {
  return `${method}${path}`.toLowerCase().replace(/[^a-z]+/g, "-");
}

start();
