//! The rules of docs/imports.md, one by one.

use alknet_core::{BoxFuture, DialError, DialErrorKind, DialRequest, DialedConnection};
use serde_json::json;

use super::*;

#[derive(Debug)]
struct OpenApiTestDialer;

impl Dialer for OpenApiTestDialer {
    fn connect(&self, _request: DialRequest) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
        let unknown_peer = DialError::new(DialErrorKind::Local, "nobody");
        Box::pin(std::future::ready(Err(unknown_peer)))
    }
}

fn import(document: &Value, only: &[&str]) -> Vec<alknet_call::OperationSpec> {
    let mut options = OpenApiOptions::new("ns", "https://api.example");
    options.only = only.iter().map(|&one| one.to_owned()).collect();
    let bytes = document.to_string().into();
    let adapter =
        FromOpenApi::new(bytes, options, Arc::new(OpenApiTestDialer)).expect("an address");
    let registrations = adapter.registrations().expect("a document");
    registrations.iter().map(|one| one.spec().clone()).collect()
}

/// The only operation of a document.
fn one(
    version: &str,
    method: &str,
    operation: &Value,
    schemas: &Value,
) -> alknet_call::OperationSpec {
    let document = json!({
        "openapi": version,
        "paths": { "/a": { method: operation } },
        "components": { "schemas": schemas },
    });
    import(&document, &[]).remove(0)
}

fn content(media: &str, schema: &Value) -> Value {
    json!({ "content": { media: { "schema": schema } } })
}

/// The schema of a body in JSON.
fn of_body(version: &str, schema: &Value, schemas: &Value) -> Value {
    let operation = json!({ "requestBody": content("application/json", schema) });
    let mut input = one(version, "post", &operation, schemas).input_schema;
    input["properties"]["body"].take()
}

#[test]
fn methods_and_answers_decide_the_kind() {
    let events = json!({ "responses": { "200": content("text/event-stream", &json!({})) } });
    for (method, operation, kind) in [
        ("get", json!({}), OperationType::Query),
        ("head", json!({}), OperationType::Query),
        ("post", json!({}), OperationType::Mutation),
        ("put", json!({}), OperationType::Mutation),
        ("delete", json!({}), OperationType::Mutation),
        ("options", json!({}), OperationType::Mutation),
        ("get", events.clone(), OperationType::Subscription),
        ("post", events, OperationType::Subscription),
    ] {
        let spec = one("3.1.0", method, &operation, &json!({}));
        assert_eq!(spec.op_type, kind, "{method}");
        assert_eq!(spec.visibility, alknet_call::Visibility::Internal);
        assert_eq!(spec.name, format!("ns/{method}_a"));
    }
    let traced = json!({ "openapi": "3.1.0", "paths": { "/a": { "trace": {} } } });
    assert!(import(&traced, &[]).is_empty());
}

/// People and models read a description, and a server may write into it what it likes.
#[test]
fn a_description_says_whose_words_it_has() {
    let words = json!({ "summary": "Reads\na note.", "description": "Call me often." });
    let told = one("3.1.0", "get", &words, &json!({})).description;
    let expected = "Of the server 'ns', in its own words: Reads a note.\nCall me often.";
    assert_eq!(told, expected);
    let silent = one("3.1.0", "get", &json!({}), &json!({})).description;
    assert_eq!(silent, "Of the server 'ns'.");
}

#[test]
fn only_what_is_wanted_is_taken() {
    let document = json!({ "openapi": "3.0.0", "paths": { "/a": {
        "get": { "operationId": "repos/get" },
        "put": { "operationId": "repos/put" },
        "post": { "operationId": "users/make" },
    }}});
    let names = |only: &[&str]| {
        let specs = import(&document, only);
        specs.into_iter().map(|spec| spec.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]).len(), 3);
    assert_eq!(names(&["repos/"]), ["ns/repos/get", "ns/repos/put"]);
    assert_eq!(
        names(&["repos/g", "users"]),
        ["ns/repos/get", "ns/users/make"]
    );
}

#[test]
fn two_of_one_name_say_where_they_go() {
    let parameter = |name: &str, place: &str| json!({ "name": name, "in": place });
    let document = json!({ "openapi": "3.1.0", "paths": { "/a/{id}": {
        "parameters": [parameter("id", "path"), parameter("plain", "query")],
        "post": {
            "operationId": "x",
            "parameters": [
                parameter("id", "query"),
                parameter("id", "header"),
                parameter("both", "query"),
                parameter("both", "cookie"),
                parameter("body", "query"),
                parameter("id_query", "query"),
            ],
            "requestBody": content("application/json", &json!({ "type": "string" })),
        },
    }}});
    let spec = import(&document, &[]).remove(0);
    let members = spec.input_schema["properties"]
        .as_object()
        .expect("members");
    let mut names: Vec<_> = members.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "body",
            "body_query",
            "both_cookie",
            "both_query",
            "id",
            "id_header",
            "id_query",
            "id_query_",
            "plain"
        ]
    );
    assert_eq!(spec.input_schema["required"], json!(["id"]));
    assert_eq!(spec.input_schema["additionalProperties"], json!(false));
}

#[test]
fn outputs_are_any_of_the_good_answers_and_the_others_are_errors() {
    let text = json!({ "type": "string" });
    let operation = json!({ "responses": {
        "200": content("application/json", &json!({ "type": "integer" })),
        "201": content("application/vnd.x+json", &text),
        "202": content("text/plain", &json!({})),
        "203": content("image/png", &json!({})),
        "204": { "description": "nothing" },
        "404": content("application/problem+json", &json!({ "type": "object" })),
        "4XX": {},
        "503": { "description": "later" },
        "default": {},
    }});
    let spec = one("3.1.0", "get", &operation, &json!({}));
    assert_eq!(
        spec.output_schema,
        json!({ "anyOf": [
            { "type": "integer" },
            { "type": "string" },
            { "type": "string", "contentEncoding": "base64" },
            { "type": "null" },
        ]})
    );
    let errors: Vec<_> = spec
        .error_schemas
        .iter()
        .map(|error| (error.code.as_str(), error.http_status))
        .collect();
    assert_eq!(errors, [("HTTP_404", Some(404)), ("HTTP_503", Some(503))]);
    let body = &spec.error_schemas[0].schema["properties"]["body"];
    assert_eq!(*body, json!({ "type": "object" }));
}

/// Whether a request is made with the credential, where the document and the operation say this of security.
fn is_ours(of_document: &Value, of_operation: &Value) -> bool {
    let mut document = json!({
        "openapi": "3.1.0",
        "paths": { "/a": { "get": { "responses": {} } } },
    });
    if !of_document.is_null() {
        document["security"] = of_document.clone();
    }
    if !of_operation.is_null() {
        document["paths"]["/a"]["get"]["security"] = of_operation.clone();
    }
    let document = document.to_string();
    let document = OpenApiSourceDocument::parse(document.as_bytes()).expect("a document");
    let operations = found(&document).expect("operations");
    let mut names = UniqueNames::new("ns");
    let read = plan::read(
        &document,
        &operations[0],
        &BTreeSet::new(),
        &mut names,
        4096,
    );
    read.expect("an operation").0.is_ours
}

#[test]
fn the_security_of_the_document_counts_where_an_operation_has_none() {
    let (none, key) = (json!([]), json!([{ "key": [] }]));
    let (open, either) = (json!([{}]), json!([{}, { "key": [] }]));
    for (of_document, of_operation, ours) in [
        // Nothing is said of it.
        (&Value::Null, &Value::Null, true),
        (&none, &Value::Null, false),
        (&key, &Value::Null, true),
        (&open, &Value::Null, false),
        (&either, &Value::Null, true),
        // The operation's own takes its place.
        (&none, &key, true),
        (&key, &none, false),
        (&key, &open, false),
        (&open, &either, true),
    ] {
        let found = is_ours(of_document, of_operation);
        assert_eq!(found, ours, "{of_document} {of_operation}");
    }
}

#[test]
fn old_schemas_become_new_ones() {
    let none = json!({});
    for (old, new) in [
        (
            json!({ "type": "string", "nullable": true, "example": 1, "x-y": 2, "pattern": "(" }),
            json!({ "type": ["string", "null"] }),
        ),
        (
            json!({ "type": "string", "enum": ["a", "a"], "nullable": true }),
            json!({ "type": ["string", "null"], "enum": ["a", null] }),
        ),
        (
            json!({ "type": "integer", "minimum": 1, "exclusiveMinimum": true, "maximum": 9,
                    "exclusiveMaximum": false }),
            json!({ "type": "integer", "maximum": 9, "exclusiveMinimum": 1 }),
        ),
        (
            json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }),
            json!({ "anyOf": [{ "type": "integer" }, { "type": "number" }] }),
        ),
        (
            json!({ "type": "object", "required": ["a", "id"], "properties": {
                "a": {}, "id": { "readOnly": true } } }),
            json!({ "type": "object", "required": ["a"], "properties": {
                "a": {}, "id": { "readOnly": true } } }),
        ),
        (
            json!({ "type": "file", "minLength": -1, "maximum": "9", "required": true, "enum": [],
                    "allOf": [], "items": 7, "title": ["x"] }),
            json!({}),
        ),
        (
            json!({ "type": "object", "patternProperties": { "^x": {} },
                    "additionalProperties": false }),
            json!({ "type": "object" }),
        ),
    ] {
        assert_eq!(of_body("3.0.3", &old, &none), new, "{old}");
    }
    // A list that is longer than a schema may be is left out: cut, it would refuse what the server takes.
    // Each value is compared with no other, or this would take minutes.
    let many: Vec<u32> = (0..300_000).collect();
    let long = json!({ "type": "integer", "enum": many });
    assert_eq!(of_body("3.0.3", &long, &none), json!({ "type": "integer" }));
    let schemas = json!({ "S": { "type": "object" } });
    let reference = json!({ "$ref": "#/components/schemas/S", "nullable": true });
    assert_eq!(
        of_body("3.0.3", &reference, &schemas),
        json!({ "anyOf": [{ "$ref": "#/$defs/S" }, { "type": "null" }] })
    );
}

#[test]
fn names_that_people_chose_are_no_keywords() {
    let schema = json!({ "type": "object", "properties": {
        "example": { "type": "string" },
        "x-mine": { "type": "string" },
        "properties": { "type": "object", "properties": { "examples": {}, "default": {} } },
        "$ref": { "type": "string" },
    }});
    assert_eq!(of_body("3.1.0", &schema, &json!({})), schema);
}

#[test]
fn bodies_are_json_where_they_can_be() {
    let operation = json!({ "requestBody": { "required": true, "content": {
        "text/plain": {},
        "multipart/form-data": {},
        "application/x-www-form-urlencoded": {},
        "application/merge-patch+json": { "schema": { "type": "integer" } },
    }}});
    let spec = one("3.1.0", "patch", &operation, &json!({}));
    let body = &spec.input_schema["properties"]["body"];
    assert_eq!(*body, json!({ "type": "integer" }));
    assert_eq!(spec.input_schema["required"], json!(["body"]));
    let parts = json!({ "requestBody": content("multipart/form-data", &json!({
        "type": "object", "properties": {
            "one": { "type": "string", "format": "binary", "description": "x" },
            "many": { "type": "array", "items": { "type": "string", "format": "binary" } },
            "text": { "type": "string" },
        }})) });
    let spec = one("3.0.3", "post", &parts, &json!({}));
    let bytes = json!({ "type": "string", "contentEncoding": "base64" });
    let members = &spec.input_schema["properties"]["body"]["properties"];
    assert_eq!(members["one"], bytes);
    assert_eq!(members["many"]["items"], bytes);
    assert_eq!(members["text"], json!({ "type": "string" }));
    assert_eq!(spec.input_schema["type"], json!(["object", "null"]));
}

/// What an operation at `path` sends for an input.
fn request(
    path: &str,
    operation: &Value,
    input: &Value,
) -> Result<http::Request<Bytes>, CallError> {
    let document = json!({ "openapi": "3.1.0", "paths": { path: { "post": operation } } });
    let document =
        OpenApiSourceDocument::parse(document.to_string().as_bytes()).expect("a document");
    let found = found(&document).expect("operations");
    let mut names = UniqueNames::new("ns");
    let (plan, _) =
        plan::read(&document, &found[0], &BTreeSet::new(), &mut names, 4096).expect("an operation");
    plan.request("https://api.example", input)
}

fn media(request: &http::Request<Bytes>) -> &str {
    request.headers()[CONTENT_TYPE].to_str().expect("text")
}

#[test]
fn forms_are_written_as_they_are_described() {
    let plan = |content: Value, input: Value| {
        let operation = json!({ "requestBody": { "content": content } });
        let request = request("/a", &operation, &input).expect("a request");
        let media = media(&request).to_owned();
        (
            media,
            String::from_utf8(request.into_body().to_vec()).expect("text"),
        )
    };
    let form = json!({ "application/x-www-form-urlencoded": {
        "schema": { "type": "object", "properties": {
            "a": {}, "list": {}, "deep": {}, "flat": {}, "object": {} } },
        "encoding": {
            "deep": { "style": "deepObject", "explode": true },
            "flat": { "explode": false },
        },
    }});
    let input = json!({ "body": {
        "a": "x&y", "list": [1, true], "deep": { "k": { "l": ["m"] } }, "flat": ["p", "q"],
        "object": { "n": 1 }, "none": null,
    }});
    let (media, body) = plan(form, input);
    assert_eq!(media, "application/x-www-form-urlencoded");
    assert_eq!(
        body,
        "a=x%26y&list=1&list=true&deep%5Bk%5D%5Bl%5D%5B0%5D=m&flat=p%2Cq&\
         object=%7B%22n%22%3A1%7D"
    );
    let parts = json!({ "multipart/form-data": {
        "schema": { "type": "object", "properties": {
            "file": { "type": "string", "format": "binary" }, "meta": { "type": "object" } } },
        "encoding": { "file": { "contentType": "image/png" } },
    }});
    let input = json!({ "body": { "file": "aGk=", "meta": { "a": 1 }, "t\"\r\nx": "alknet-" } });
    let (media, body) = plan(parts, input);
    let boundary = media
        .strip_prefix("multipart/form-data; boundary=")
        .expect("a boundary");
    assert_eq!(
        body.replace(boundary, "B"),
        "--B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"file\"\r\n\
         content-type: image/png\r\n\r\nhi\r\n\
         --B\r\ncontent-disposition: form-data; name=\"meta\"\r\n\
         content-type: application/json\r\n\r\n{\"a\":1}\r\n\
         --B\r\ncontent-disposition: form-data; name=\"t%22%0D%0Ax\"\r\n\r\nalknet-\r\n--B--\r\n"
    );
}

/// An input has a name once for many values, and a request may have it for each of them.
#[test]
fn what_a_request_would_be_is_bounded_before_it_is_written() {
    let list = json!(vec![0; 4_000]);
    // As a caller calls it, and as a document calls it.
    let (long, name) = ("n".repeat(64 << 10), "n".repeat(500));
    let parameter = |place: &str, style: &str| {
        let path = if place == "path" {
            format!("/{{{name}}}")
        } else {
            "/a".to_owned()
        };
        let one = json!({ "name": name, "in": place, "style": style, "explode": true });
        (path, json!({ "parameters": [one] }))
    };
    let form = |style: &str| {
        let encoding = json!({ "a": { "style": style, "explode": true } });
        let form = json!({ "encoding": encoding, "schema": { "properties": { "a": {} } } });
        let content = json!({ "application/x-www-form-urlencoded": form });
        json!({ "requestBody": { "content": content } })
    };
    let parts = json!({ "requestBody": content("multipart/form-data", &json!({})) });
    let bodies = [
        (
            form("deepObject"),
            json!({ "body": { "a": { (&long): list } } }),
        ),
        (form("form"), json!({ "body": { (&long): list } })),
        (parts.clone(), json!({ "body": { (&long): list } })),
        (
            parts,
            json!({ "body": { (&long): vec![json!({ "a": 1 }); 4_000] } }),
        ),
    ];
    let bodies = bodies
        .map(|(operation, input)| ("/a".to_owned(), operation, input, limits::BODY_BYTES_MAX));
    let heads = [
        ("query", "form", list.clone()),
        ("query", "deepObject", json!({ (&long): list })),
        ("query", "pipeDelimited", list.clone()),
        ("cookie", "form", list.clone()),
        ("header", "simple", json!([list, list, list])),
        ("header", "simple", json!({ (&long): 1 })),
        ("path", "matrix", list.clone()),
        ("path", "label", json!({ (&long): list })),
    ];
    let heads = heads.map(|(place, style, value)| {
        let (path, operation) = parameter(place, style);
        (
            path,
            operation,
            json!({ (&name): value }),
            limits::HEAD_BYTES_MAX,
        )
    });
    for (path, operation, input, most) in bodies.into_iter().chain(heads) {
        let refused = request(&path, &operation, &input).expect_err("it is too long");
        assert_eq!(
            refused.code,
            alknet_call::ErrorCode::InvalidInput,
            "{operation}"
        );
        assert!(
            refused.message.contains(&most.to_string()),
            "{operation}: {refused}"
        );
    }
    // What is as long as may be.
    let fits = |bytes: usize| {
        let text = "x".repeat(bytes - "a=".len());
        request("/a", &form("form"), &json!({ "body": { "a": text } }))
    };
    let whole = fits(limits::BODY_BYTES_MAX).expect("a request");
    assert_eq!(whole.body().len(), limits::BODY_BYTES_MAX);
    assert!(fits(limits::BODY_BYTES_MAX + 1).is_err());
    let (path, operation) = parameter("header", "simple");
    let fits = |bytes: usize| request(&path, &operation, &json!({ (&name): "x".repeat(bytes) }));
    assert!(fits(limits::HEAD_BYTES_MAX).is_ok() && fits(limits::HEAD_BYTES_MAX + 1).is_err());
}

/// A caller that could guess the boundary would end its part with it, or make the node look for another again and again.
#[test]
fn the_boundary_of_parts_is_drawn() {
    let operation = json!({ "requestBody": content("multipart/form-data", &json!({})) });
    let guesses: String = (0..10_000)
        .map(|n| format!("--alknet-{n:016x}\r\n"))
        .collect();
    let input = json!({ "body": { "a": guesses } });
    let drawn = [(); 2].map(|()| {
        let request = request("/a", &operation, &input).expect("a request");
        let drawn = media(&request).strip_prefix("multipart/form-data; boundary=alknet-");
        let drawn = drawn.expect("a boundary").to_owned();
        let body = String::from_utf8(request.body().to_vec()).expect("text");
        assert_eq!(body.matches(&drawn).count(), 2);
        drawn
    });
    assert!(drawn[0] != drawn[1] && drawn[0].len() == 32, "{drawn:?}");
}
