/** The current request as a command line. */

/**
 * @param {{name: string}[]} pictures
 * @param {{name: string} | null} lr the low-resolution picture that all of them were made from
 * @param {Record<string, string>} options query parameters
 * @param {boolean} token whether the server asks for one; its text never appears
 */
export function curlCommand(pictures, lr, options, token) {
  const lines = ["curl"];
  if (token) lines.push(`-H "Authorization: Bearer $FINPERCEP_TOKEN"`);
  for (const { name } of pictures) {
    lines.push(`-F ${quoted(fileField("image", name))}`);
    if (lr) lines.push(`-F ${quoted(fileField("lr", lr.name))}`);
  }
  lines.push(quoted(`${new URL("score", document.baseURI)}?${new URLSearchParams(options)}`));
  return lines.join(" \\\n  ");
}

function fileField(field, name) {
  return `${field}=@"${name.replace(/["\\]/g, "\\$&")}"`;
}

/** A word for a POSIX shell. */
function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
