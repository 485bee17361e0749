/** The current request as a command line. */

/**
 * @param {{name: string}[]} pictures
 * @param {Record<string, string>} options query parameters
 * @param {boolean} token whether the server asks for one; its text never appears
 */
export function curlCommand(pictures, options, token) {
  const lines = ["curl"];
  if (token) lines.push(`-H "Authorization: Bearer $FINPERCEP_TOKEN"`);
  for (const { name } of pictures) lines.push(`-F ${quoted(`image=@"${name.replace(/["\\]/g, "\\$&")}"`)}`);
  lines.push(quoted(`${new URL("score", document.baseURI)}?${new URLSearchParams(options)}`));
  return lines.join(" \\\n  ");
}

/** A word for a POSIX shell. */
function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
