//! Plans how a call of one operation becomes a request.

use std::collections::{BTreeMap, BTreeSet};

use alknet_call::{CallError, OperationSpec, OperationType, Visibility};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, COOKIE};
use http::{HeaderName, HeaderValue, Method, Request};
use serde_json::{Map, Value, json};

use super::answer;
use super::body::BodyPlan;
use super::byte_budget::RequestByteBudget;
use super::error::DocumentError;
use super::limits::{DESCRIPTION_CHARS_MAX, PARAMETERS_MAX, REMARK_CHARS_MAX};
use super::names::UniqueNames;
use super::parameter::{
    PairWriter, Parameter, ParameterLocation, ParameterSerialization, ParameterStyle, plain,
    segment,
};
use super::refs::{OpenApiSourceDocument, escaped};
use super::schema::{SchemaBuilder, SchemaDirection, brief};

/// The methods that a document may describe, except `trace`, which no client sends.
pub(super) const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// The member of the input that holds the body.
const BODY: &str = "body";

/// How a call becomes a request.
#[derive(Debug)]
pub(super) struct RequestPlan {
    method: Method,
    path: Vec<PathTemplatePart>,
    inputs: Vec<InputMember>,
    body: Option<BodyPlan>,
    accept: HeaderValue,
    pub(super) is_query: bool,
    /// Whether the document requires a credential for the operation.
    pub(super) is_ours: bool,
}

#[derive(Debug)]
enum PathTemplatePart {
    Text(String),
    /// The value of the input at this index, which is a parameter in the path.
    Value(usize),
}

/// A member of the input that becomes a parameter.
#[derive(Debug)]
struct InputMember {
    member: String,
    name: String,
    location: ParameterLocation,
    writing: ParameterSerialization,
}

/// The location of an operation in the document.
pub(super) struct DocumentOperation<'a> {
    pub(super) path: &'a str,
    pub(super) method: &'static str,
    pub(super) operation: &'a Map<String, Value>,
    /// The parameters of all operations of the path.
    pub(super) shared: Option<&'a Value>,
    pub(super) at: String,
}

/// Reads the plan and the specification of an operation. Its schemas may have `schema_bytes_max` bytes.
pub(super) fn read(
    document: &OpenApiSourceDocument,
    found: &DocumentOperation<'_>,
    keys: &BTreeSet<(ParameterLocation, String)>,
    names: &mut UniqueNames,
    schema_bytes_max: usize,
) -> Result<(RequestPlan, OperationSpec), DocumentError> {
    let at = &found.at;
    let text = |name: &str| found.operation.get(name).and_then(Value::as_str);
    let mut parameters = parameters(document, found, keys)?;
    let path = path(found.path, &mut parameters)?;
    let has_body = found.operation.get("requestBody");
    let mut schemas = SchemaBuilder::new(document, SchemaDirection::In, at, schema_bytes_max);
    let body = match has_body {
        Some(node) => BodyPlan::read(document, node, &format!("{at}/requestBody"), &mut schemas)?,
        None => None,
    };
    name_members(&mut parameters, body.is_some());
    let input = input_schema(&parameters, body.as_ref(), schemas)?;
    let none = Value::Null;
    let responses = found.operation.get("responses").unwrap_or(&none);
    let answers = answer::read(
        document,
        responses,
        &format!("{at}/responses"),
        schema_bytes_max,
    )?;
    let method = Method::from_bytes(found.method.to_ascii_uppercase().as_bytes())
        .map_err(|_| DocumentError::shape(at, "a method"))?;
    // Of these methods, only GET and HEAD are safe (RFC 9110 section 9.2.1). Another method may change something.
    let op_type = match &method {
        _ if answers.streams => OperationType::Subscription,
        &Method::GET | &Method::HEAD => OperationType::Query,
        _ => OperationType::Mutation,
    };
    let name = names.name(text("operationId"), found.method, found.path);
    let description = describe(&name, text("summary"), text("description"));
    let mut spec = OperationSpec::new(&name, op_type, &description);
    // Only callers with the node's grant reach another server with its credential.
    spec.visibility = Visibility::Internal;
    spec.input_schema = input;
    spec.output_schema = answers.output;
    spec.error_schemas = answers.errors;
    spec.tags = tags(found.operation);
    let plan = RequestPlan {
        is_query: matches!(method, Method::GET | Method::HEAD),
        method,
        path,
        inputs: parameters
            .into_iter()
            .map(|one| InputMember {
                member: one.member,
                name: one.name,
                location: one.location,
                writing: one.writing,
            })
            .collect(),
        body: body.map(|(body, _)| body),
        accept: HeaderValue::try_from(answers.accept)
            .unwrap_or_else(|_| HeaderValue::from_static("*/*")),
        is_ours: wants_credential(document, found.operation),
    };
    Ok((plan, spec))
}

/// Whether the operation's requests need the credential, by the requirements of the operation or else of the document
/// (OpenAPI 3.1, section 4.8.30). A requirement without members is met without a credential, so a list of only such
/// requirements needs none. A document without a list does not decide, and its requests have the credential.
fn wants_credential(document: &OpenApiSourceDocument, operation: &Map<String, Value>) -> bool {
    let security = operation.get("security");
    let security = security.or_else(|| document.root().get("security"));
    let requirements = security.and_then(Value::as_array);
    requirements.is_none_or(|all| all.iter().any(|one| *one != json!({})))
}

/// The parameters of the operation and of its path. If both declare a parameter with the same name and location, the
/// operation's one is used. Credentials fill in the parameters of `keys`, so those are left out.
fn parameters<'a>(
    document: &'a OpenApiSourceDocument,
    found: &DocumentOperation<'a>,
    keys: &BTreeSet<(ParameterLocation, String)>,
) -> Result<Vec<Parameter<'a>>, DocumentError> {
    let mut all: Vec<Parameter<'a>> = Vec::new();
    for node in [found.shared, found.operation.get("parameters")] {
        let Some(node) = node else { continue };
        let at = format!("{}/parameters", found.at);
        let list = document.resolve(node, &at)?.as_array();
        let list = list.ok_or_else(|| DocumentError::shape(&at, "a list"))?;
        for (number, node) in list.iter().enumerate() {
            let at = format!("{at}/{number}");
            let Some(one) = Parameter::read(document, node, &at)? else {
                continue;
            };
            if keys.contains(&(one.location, one.name.to_ascii_lowercase())) {
                continue;
            }
            // The path's parameters come first, so an operation's parameter replaces the path's one of the same name.
            all.retain(|other| (other.location, &other.name) != (one.location, &one.name));
            all.push(one);
            if all.len() > PARAMETERS_MAX {
                return Err(DocumentError::TooMuch {
                    what: "parameters of one operation",
                    most: PARAMETERS_MAX,
                });
            }
        }
    }
    Ok(all)
}

/// The parts of the path. A parameter that the document does not describe is a string; a described parameter that the
/// path does not contain is left out.
fn path(
    template: &str,
    parameters: &mut Vec<Parameter<'_>>,
) -> Result<Vec<PathTemplatePart>, DocumentError> {
    let invalid = || DocumentError::shape(format!("/paths/{}", escaped(template)), "a path");
    // A query or a fragment would end the path, and some servers read a backslash as a slash.
    if !template.starts_with('/') || template.contains(['?', '#', '\\']) {
        return Err(invalid());
    }
    parameters.retain(|one| {
        one.location != ParameterLocation::Path || template.contains(&format!("{{{}}}", one.name))
    });
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let close = rest[open..]
            .find('}')
            .map(|at| open + at)
            .ok_or_else(invalid)?;
        let name = &rest[open + 1..close];
        pieces.push(PathTemplatePart::Text(encoded(&rest[..open])));
        let is_it =
            |one: &Parameter<'_>| one.location == ParameterLocation::Path && one.name == name;
        let at = parameters.iter().position(is_it).unwrap_or_else(|| {
            parameters.push(Parameter {
                name: name.to_owned(),
                member: name.to_owned(),
                location: ParameterLocation::Path,
                writing: ParameterSerialization {
                    style: ParameterStyle::Simple,
                    explode: false,
                    reserved: false,
                },
                is_required: true,
                schema: None,
                description: None,
            });
            parameters.len() - 1
        });
        pieces.push(PathTemplatePart::Value(at));
        rest = &rest[close + 1..];
    }
    pieces.push(PathTemplatePart::Text(encoded(rest)));
    Ok(pieces)
}

/// A part of the path from the document, with the characters escaped that a URI cannot have.
fn encoded(text: &str) -> String {
    use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
    const IN_PATH: &AsciiSet = &CONTROLS
        .add(b' ')
        .add(b'"')
        .add(b'<')
        .add(b'>')
        .add(b'^')
        .add(b'`')
        .add(b'{')
        .add(b'|')
        .add(b'}');
    utf8_percent_encode(text, IN_PATH).to_string()
}

/// Gives each parameter a unique member. If several parameters have the same name, the members of those outside the
/// path include their location.
fn name_members(parameters: &mut [Parameter<'_>], has_body: bool) {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for one in parameters.iter() {
        *count.entry(one.name.clone()).or_default() += 1;
    }
    let mut taken: BTreeSet<String> = BTreeSet::new();
    if has_body {
        taken.insert(BODY.to_owned());
    }
    let plain = |one: &Parameter<'_>| {
        let alone = count.get(&one.name) == Some(&1) || one.location == ParameterLocation::Path;
        alone && !(has_body && one.name == BODY)
    };
    for one in parameters.iter() {
        if plain(one) {
            taken.insert(one.name.clone());
        }
    }
    for one in parameters.iter_mut().filter(|one| !plain(one)) {
        let mut member = format!("{}_{}", one.name, one.location.name());
        // A server may also have a parameter with the longer name.
        while !taken.insert(member.clone()) {
            member.push('_');
        }
        one.member = member;
    }
}

fn input_schema<'a>(
    parameters: &[Parameter<'a>],
    body: Option<&(BodyPlan, Value)>,
    mut schemas: SchemaBuilder<'a>,
) -> Result<Value, DocumentError> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for one in parameters {
        let mut schema = match one.schema {
            Some(node) => schemas.add(node)?,
            None => json!({ "type": "string" }),
        };
        if let (Value::Object(schema), Some(text)) = (&mut schema, one.description) {
            let text = brief(text, REMARK_CHARS_MAX);
            schema.entry("description").or_insert_with(|| text.into());
        }
        if one.is_required {
            required.push(one.member.clone());
        }
        properties.insert(one.member.clone(), schema);
    }
    if let Some((plan, schema)) = body {
        if plan.is_required {
            required.push(BODY.to_owned());
        }
        properties.insert(BODY.to_owned(), schema.clone());
    }
    // A caller may send no input, which is `null`.
    let kind = match required.is_empty() {
        true => json!(["object", "null"]),
        false => json!("object"),
    };
    schemas.finish(json!({
        "type": kind,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    }))
}

/// The description of an operation. Lists show its first line. People and models learn from it that the server wrote
/// the words.
fn describe(operation: &str, summary: Option<&str>, more: Option<&str>) -> String {
    let summary = summary.map(|text| brief(text, REMARK_CHARS_MAX));
    let more = more.map(|text| brief(text, DESCRIPTION_CHARS_MAX));
    let words = match (summary, more) {
        (Some(summary), Some(more)) if summary != more => format!("{summary}\n{more}"),
        (one, other) => one.or(other).unwrap_or_default(),
    };
    let namespace = operation.split('/').next().unwrap_or_default();
    match words.is_empty() {
        true => format!("Of the server '{namespace}'."),
        false => format!("Of the server '{namespace}', in its own words: {words}"),
    }
}

fn tags(operation: &Map<String, Value>) -> Vec<String> {
    const TAGS_MAX: usize = 8;
    let tags = operation.get("tags").and_then(Value::as_array);
    let tags = tags.into_iter().flatten().filter_map(Value::as_str);
    tags.take(TAGS_MAX).map(|tag| brief(tag, 64)).collect()
}

impl RequestPlan {
    /// The request that `input` describes, for a server at `base`, which has no slash at its end.
    pub(super) fn request(&self, base: &str, input: &Value) -> Result<Request<Bytes>, CallError> {
        let none = Map::new();
        let members = match input {
            Value::Object(members) => members,
            Value::Null => &none,
            _ => return Err(CallError::invalid_input("the input has to be an object")),
        };
        // One budget covers the address, the headers and the cookies together.
        let mut budget = RequestByteBudget::head();
        let mut uri = base.to_owned();
        uri.push_str(&self.path(members, &mut budget)?);
        let query = self.pairs(ParameterLocation::Query, members, &mut budget)?;
        if !query.is_empty() {
            uri.push('?');
            uri.push_str(&query);
        }
        let mut request = Request::builder().method(self.method.clone());
        for (one, value) in self.given(ParameterLocation::Header, members) {
            let name = HeaderName::try_from(one.name.as_str());
            let value = HeaderValue::try_from(plain(value, one.writing, &mut budget)?);
            // A value with a line break would begin another header (RFC 9110 section 5.5).
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(unfit(&one.member, "a header"));
            };
            request = request.header(name, value);
        }
        let cookies = self.pairs(ParameterLocation::Cookie, members, &mut budget)?;
        if !cookies.is_empty() {
            request = request.header(COOKIE, cookies);
        }
        let mut body = Bytes::new();
        if let Some(plan) = &self.body
            && let Some(value) = members.get(BODY)
        {
            let (media, bytes) = plan.write(value)?;
            request = request.header(CONTENT_TYPE, media);
            body = bytes.into();
        }
        let invalid = |error: http::Error| {
            CallError::invalid_input(format!("this makes no request: {error}"))
        };
        request
            .uri(uri)
            .header(ACCEPT, self.accept.clone())
            .body(body)
            .map_err(invalid)
    }

    /// The values of the parameters at a location.
    fn given<'a>(
        &'a self,
        location: ParameterLocation,
        members: &'a Map<String, Value>,
    ) -> impl Iterator<Item = (&'a InputMember, &'a Value)> {
        let inputs = self
            .inputs
            .iter()
            .filter(move |one| one.location == location);
        inputs.filter_map(|one| {
            let value = members.get(&one.member)?;
            // A parameter that is `null` counts as absent.
            (!value.is_null()).then_some((one, value))
        })
    }

    fn pairs(
        &self,
        location: ParameterLocation,
        members: &Map<String, Value>,
        budget: &mut RequestByteBudget,
    ) -> Result<String, CallError> {
        let (between, is_query) = match location {
            ParameterLocation::Cookie => ("; ", false),
            _ => ("&", true),
        };
        let mut pairs = PairWriter::new(budget, between);
        for (one, value) in self.given(location, members) {
            // Reserved characters stay unescaped only in queries (OpenAPI 3.1, section 4.8.12.2).
            let writing = ParameterSerialization {
                reserved: one.writing.reserved && is_query,
                ..one.writing
            };
            pairs.add(&one.name, value, writing)?;
        }
        Ok(pairs.finish())
    }

    fn path(
        &self,
        members: &Map<String, Value>,
        budget: &mut RequestByteBudget,
    ) -> Result<String, CallError> {
        let mut path = String::new();
        for piece in &self.path {
            match piece {
                PathTemplatePart::Text(text) => path.push_str(text),
                PathTemplatePart::Value(at) => {
                    let one = &self.inputs[*at];
                    let value = members.get(&one.member).unwrap_or(&Value::Null);
                    let text = segment(&one.name, value, one.writing, budget)?;
                    path.push_str(&text.ok_or_else(|| unfit(&one.member, "a path"))?);
                }
            }
        }
        // A server that resolves dots would serve another path.
        let dots = |part: &str| matches!(part, "." | "..");
        if path.split('/').any(dots) {
            return Err(CallError::invalid_input(
                "a part of the path would be '.' or '..'; such names cannot be asked for",
            ));
        }
        Ok(path)
    }
}

fn unfit(member: &str, what: &str) -> CallError {
    CallError::invalid_input(format!("the member '{member}' does not fit into {what}"))
}
