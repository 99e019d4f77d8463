// What a connector service does with the official client; prints each answer as a line of JSON.
// Run as `node story.mjs elasticsearch-8|elasticsearch-9 URL KEY`.
import { readFileSync } from "node:fs";

const [release, node, apiKey] = process.argv.slice(2);
const { Client } = await import(release);
const client = new Client({ node, auth: { apiKey } });
const story = JSON.parse(readFileSync(new URL("story.json", import.meta.url)));
const camel = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());

for (const step of story) {
  const part = step.call === "info" ? client : client.connector;
  const told = {};
  try {
    told.body = await part[camel(step.call)](step.with);
  } catch (error) {
    told.error = error.name;
    told.status = error.statusCode;
    told.type = error.body?.error?.type ?? error.message;
  }
  console.log(JSON.stringify(told));
}
await client.close();
