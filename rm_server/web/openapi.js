/** Parts of an OpenAPI document in words: types, and requests as command lines. Pure. */

/**
 * A JSON schema's type.
 * @returns {{words: string, name: string | null}} `name` is that of a schema described elsewhere
 */
export function typeOf(schema = {}) {
  if (schema.$ref) return { words: "", name: schema.$ref.split("/").at(-1) };
  if (schema.anyOf) return alternatives(schema.anyOf);
  if (schema.enum) return plain(schema.enum.join(" | "));
  if (schema.prefixItems) return plain(`${schema.prefixItems.length} × ${schema.prefixItems[0].type}`);
  if (schema.type === "array") {
    const { words, name } = typeOf(schema.items);
    return { words: `array of ${words}`, name };
  }
  const bounds = limits(schema);
  return plain(`${schema.type ?? "any"}${bounds && ` ${bounds}`}`);
}

function plain(words) {
  return { words, name: null };
}

function alternatives(schemas) {
  const others = schemas.filter((schema) => schema.type !== "null");
  const { words, name } = typeOf(others[0]);
  const more = others.slice(1).map((schema) => ` or ${typeOf(schema).words}`);
  const nullable = others.length < schemas.length ? "or null: " : "";
  return name ? { words: nullable + words, name } : plain(`${words}${more.join("")}${nullable && " or null"}`);
}

function limits({ minimum, exclusiveMinimum, maximum, maxLength }) {
  const parts = [];
  if (minimum !== undefined) parts.push(`≥ ${minimum}`);
  if (exclusiveMinimum !== undefined) parts.push(`> ${exclusiveMinimum}`);
  if (maximum !== undefined) parts.push(`≤ ${maximum}`);
  if (maxLength !== undefined) parts.push(`up to ${maxLength} characters`);
  return parts.join(", ");
}

const BODIES = {
  "multipart/form-data": ["Picture files", "-F image=@a.png -F image=@b.jpg"],
  "image/*": ["One picture as the body", "--data-binary @a.png -H 'Content-Type: image/png'"],
  "application/json": ["Pictures in base64", `-H 'Content-Type: application/json' -d '{"image": "BASE64"}'`],
  "application/x-safetensors": [
    "Tensors (see finpercep.client.RewardClient)",
    "--data-binary @request.safetensors -H 'Content-Type: application/x-safetensors' \\\n  -o reply.safetensors",
  ],
};

/** Ways to call a route from a shell, one for each kind of body. */
export function curlLines(method, path, requestBody) {
  const address = new URL(path.slice(1), document.baseURI).href.replaceAll("%7B", "{").replaceAll("%7D", "}");
  if (method === "GET") return [{ title: "With curl", command: `curl ${address}` }];
  if (method === "PUT") {
    const example = path.replace("{name}", "RM_2");
    const command = `curl -X PUT ${new URL(example.slice(1), document.baseURI)} \\
  -H "Authorization: Bearer $FINPERCEP_ADMIN_TOKEN" -H 'Content-Type: application/json' -d '{"source": "round-2"}'`;
    return [{ title: "With curl", command }];
  }
  return Object.keys(requestBody?.content ?? {}).map((kind) => {
    const [title, options] = BODIES[kind] ?? [kind, `--data-binary @body -H 'Content-Type: ${kind}'`];
    return { title, command: `curl ${options} ${address}` };
  });
}
