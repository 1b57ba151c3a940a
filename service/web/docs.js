// The page at /docs: the OpenAPI document, to read and to try out.

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null, // else the document's address is sent to a validator elsewhere
});
