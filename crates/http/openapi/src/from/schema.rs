//! Converts the schemas of OpenAPI to JSON Schema 2020-12. Each result is complete in itself.
//!
//! The conversion keeps only known keywords with a valid shape, so that the result always compiles. It drops
//! `pattern`, because engines differ in the syntax and in the time that they need, and the server validates its input
//! anyway. A schema that would be too long allows every value from where it is cut.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use serde_json::{Map, Value, json};

use super::error::DocumentError;
use super::limits::{REMARK_CHARS_MAX, SCHEMA_NESTING_MAX};
use super::refs::{OpenApiSourceDocument, reference};

const TYPES: [&str; 7] = [
    "array", "boolean", "integer", "null", "number", "object", "string",
];
const NUMBERS: [&str; 4] = ["exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"];
const COUNTS: [&str; 8] = [
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
];
const FLAGS: [&str; 4] = ["deprecated", "readOnly", "uniqueItems", "writeOnly"];
const WORDS: [&str; 3] = ["contentEncoding", "contentMediaType", "format"];
const REMARKS: [&str; 2] = ["description", "title"];
/// Keywords with schemas of values inside the value.
const WITHIN: [&str; 4] = ["additionalProperties", "contains", "items", "propertyNames"];
/// Keywords with schemas of the value itself.
const ITSELF: [&str; 4] = ["else", "if", "not", "then"];
const LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// The longest default that is kept.
const DEFAULT_BYTES_MAX: usize = 200;

/// Each value once, or `None` if their text is longer than `bytes_max`: a shortened list would refuse values that the
/// server accepts.
fn distinct(values: &[Value], bytes_max: usize) -> Option<Value> {
    let mut texts = HashSet::new();
    let mut bytes = 0;
    let mut distinct = Vec::new();
    for value in values {
        let text = value.to_string();
        bytes += text.len();
        if bytes > bytes_max {
            return None;
        }
        if texts.insert(text) {
            distinct.push(value.clone());
        }
    }
    (!distinct.is_empty()).then_some(Value::Array(distinct))
}

/// The direction in which the value is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SchemaDirection {
    /// To the server: callers need not send members that only the server sets.
    In,
    /// From the server: the output does not promise members that the server only accepts.
    Out,
}

/// Builds one schema and the definitions that it refers to.
pub(super) struct SchemaBuilder<'a> {
    document: &'a OpenApiSourceDocument,
    way: SchemaDirection,
    at: String,
    /// The bytes that are left.
    bytes_left: usize,
    /// The names of definitions, by the references that resolve to them.
    names: HashMap<&'a str, String>,
    taken: BTreeSet<String>,
    waiting: VecDeque<(String, &'a Value)>,
    defs: BTreeMap<String, Value>,
}

impl<'a> SchemaBuilder<'a> {
    pub(super) fn new(
        document: &'a OpenApiSourceDocument,
        way: SchemaDirection,
        at: &str,
        bytes_left: usize,
    ) -> Self {
        Self {
            document,
            way,
            at: at.to_owned(),
            bytes_left,
            names: HashMap::new(),
            taken: BTreeSet::new(),
            waiting: VecDeque::new(),
            defs: BTreeMap::new(),
        }
    }

    /// Converts `node`. References point to definitions that [`finish`](Self::finish) adds.
    pub(super) fn add(&mut self, node: &'a Value) -> Result<Value, DocumentError> {
        self.convert(node, 0)
    }

    /// `schema` with all definitions that it refers to, the nearest first.
    pub(super) fn finish(mut self, schema: Value) -> Result<Value, DocumentError> {
        while let Some((name, node)) = self.waiting.pop_front() {
            let def = match self.bytes_left {
                0 => json!({}),
                _ => self.convert(node, 0)?,
            };
            self.defs.insert(name, def);
        }
        unwind(&mut self.defs);
        Ok(match (schema, self.defs.is_empty()) {
            (Value::Object(mut schema), false) => {
                schema.insert("$defs".to_owned(), json!(self.defs));
                Value::Object(schema)
            }
            (schema, _) => schema,
        })
    }

    fn spend(&mut self, bytes: usize) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes + 4);
    }

    fn convert(&mut self, node: &'a Value, depth: usize) -> Result<Value, DocumentError> {
        let from = match node {
            Value::Bool(all) => return Ok(Value::Bool(*all)),
            Value::Object(from) => from,
            _ => return Err(DocumentError::shape(&self.at, "a schema")),
        };
        if self.bytes_left == 0 || depth > SCHEMA_NESTING_MAX {
            // The rest is not converted, but its reference must be valid.
            if let Some(to) = reference(node) {
                self.document.end_of(to, &self.at)?;
            }
            return Ok(json!({}));
        }
        let mut schema = Map::new();
        if let Some(to) = reference(node) {
            let name = self.definition(to)?;
            let to = format!("#/$defs/{name}");
            self.spend(to.len() + 8);
            schema.insert("$ref".to_owned(), to.into());
        }
        self.plain(from, &mut schema);
        self.nested(from, &mut schema, depth)?;
        self.one_way(from, &mut schema);
        widen(from, &mut schema);
        Ok(Value::Object(schema))
    }

    /// The name of the definition that `to` finally refers to.
    fn definition(&mut self, to: &'a str) -> Result<String, DocumentError> {
        let (last, node) = self.document.end_of(to, &self.at)?;
        if let Some(name) = self.names.get(last) {
            return Ok(name.clone());
        }
        let own = last.rsplit('/').next().unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let own: String = own.chars().filter(|c| plain(*c)).take(64).collect();
        let own = if own.is_empty() { "schema" } else { &own };
        let mut name = own.to_owned();
        let mut number = 2;
        // Two references may end with the same name.
        while !self.taken.insert(name.clone()) {
            name = format!("{own}_{number}");
            number += 1;
        }
        // The name is recorded before the definition is converted, so a recursive definition ends.
        self.names.insert(last, name.clone());
        self.waiting.push_back((name.clone(), node));
        Ok(name)
    }

    /// Copies the keywords that contain no schemas.
    fn plain(&mut self, from: &Map<String, Value>, schema: &mut Map<String, Value>) {
        let is_type = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
        for (keyword, value) in from {
            let keyword = keyword.as_str();
            let copied = match (keyword, value) {
                ("type", Value::String(_)) => is_type(value).then(|| value.clone()),
                ("type", Value::Array(names)) => {
                    let names: BTreeSet<_> = names.iter().filter_map(Value::as_str).collect();
                    let fine = !names.is_empty() && names.iter().all(|name| TYPES.contains(name));
                    fine.then(|| json!(names))
                }
                ("enum", Value::Array(values)) => distinct(values, self.bytes_left),
                ("const", _) => Some(value.clone()),
                ("default", _) => {
                    let short = value.to_string().len() <= DEFAULT_BYTES_MAX;
                    short.then(|| value.clone())
                }
                ("multipleOf", Value::Number(number)) => {
                    let positive = number.as_f64().is_some_and(|number| number > 0.0);
                    positive.then(|| value.clone())
                }
                (_, Value::Number(_)) if NUMBERS.contains(&keyword) => Some(value.clone()),
                (_, Value::Number(number)) if COUNTS.contains(&keyword) => {
                    number.is_u64().then(|| value.clone())
                }
                (_, Value::Bool(_)) if FLAGS.contains(&keyword) => Some(value.clone()),
                (_, Value::String(_)) if WORDS.contains(&keyword) => Some(value.clone()),
                (_, Value::String(text)) if REMARKS.contains(&keyword) => {
                    Some(brief(text, REMARK_CHARS_MAX).into())
                }
                ("required", Value::Array(names)) => {
                    let names: BTreeSet<_> = names.iter().filter_map(Value::as_str).collect();
                    Some(json!(names))
                }
                _ => None,
            };
            if let Some(copied) = copied {
                self.spend(keyword.len() + copied.to_string().len());
                schema.insert(keyword.to_owned(), copied);
            }
        }
        // In OpenAPI 3.0, these keywords are flags of the other bound.
        for (flag, bound) in [
            ("exclusiveMaximum", "maximum"),
            ("exclusiveMinimum", "minimum"),
        ] {
            if from.get(flag) == Some(&Value::Bool(true))
                && let Some(value) = schema.remove(bound)
            {
                schema.insert(flag.to_owned(), value);
            }
        }
    }

    fn nested(
        &mut self,
        from: &'a Map<String, Value>,
        schema: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), DocumentError> {
        if let Some(Value::Object(properties)) = from.get("properties") {
            let mut converted = Map::new();
            for (name, node) in properties {
                self.spend(name.len());
                converted.insert(name.clone(), self.convert(node, depth + 1)?);
            }
            schema.insert("properties".to_owned(), converted.into());
        }
        // The conversion drops patterns, so it can neither list nor forbid the names that match one.
        let by_pattern = from.contains_key("patternProperties");
        for keyword in WITHIN.into_iter().chain(ITSELF) {
            let skipped = by_pattern && keyword == "additionalProperties";
            if let Some(node) = from.get(keyword).filter(|node| is_schema(node) && !skipped) {
                schema.insert(keyword.to_owned(), self.convert(node, depth + 1)?);
            }
        }
        for keyword in LISTS.into_iter().chain(["prefixItems"]) {
            let Some(Value::Array(nodes)) = from.get(keyword) else {
                continue;
            };
            let list: Result<Vec<_>, _> = nodes
                .iter()
                .map(|node| self.convert(node, depth + 1))
                .collect();
            let list = list?;
            if list.is_empty() {
                continue;
            }
            // If a value matches several of the schemas, the server decides which of them applies.
            let to = match keyword {
                "oneOf" if self.way == SchemaDirection::In && !schema.contains_key("anyOf") => {
                    "anyOf"
                }
                other => other,
            };
            schema.insert(to.to_owned(), list.into());
        }
        Ok(())
    }

    /// Removes from `required` the members that are sent only in the other direction.
    fn one_way(&self, from: &Map<String, Value>, schema: &mut Map<String, Value>) {
        let flag = match self.way {
            SchemaDirection::In => "readOnly",
            SchemaDirection::Out => "writeOnly",
        };
        let other = |name: &str| {
            let property = from.get("properties").and_then(|all| all.get(name));
            let property = property.and_then(|node| self.document.resolve(node, &self.at).ok());
            property.and_then(|node| node.get(flag)) == Some(&Value::Bool(true))
        };
        if let Some(Value::Array(required)) = schema.get_mut("required") {
            required.retain(|name| !name.as_str().is_some_and(other));
        }
    }
}

fn is_schema(node: &Value) -> bool {
    node.is_object() || node.is_boolean()
}

/// `nullable` of OpenAPI 3.0 also allows `null`.
fn widen(from: &Map<String, Value>, schema: &mut Map<String, Value>) {
    if from.get("nullable") != Some(&Value::Bool(true)) {
        return;
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum")
        && !values.contains(&Value::Null)
    {
        values.push(Value::Null);
    }
    let bare = match schema.get_mut("type") {
        Some(Value::String(name)) => {
            if name != "null" {
                let both = json!([name, "null"]);
                schema.insert("type".to_owned(), both);
            }
            true
        }
        Some(Value::Array(names)) => {
            if !names.contains(&json!("null")) {
                names.push("null".into());
            }
            true
        }
        _ => false,
    };
    let applied = LISTS.iter().chain(&["$ref", "not", "if", "const"]);
    let applies = applied
        .into_iter()
        .any(|keyword| schema.contains_key(*keyword));
    // These keywords would still refuse `null`, so the schema becomes one of two alternatives.
    if applies || (!bare && schema.contains_key("enum")) {
        let own = Value::Object(std::mem::take(schema));
        schema.insert("anyOf".to_owned(), json!([own, { "type": "null" }]));
    }
}

/// Breaks cycles in which definitions describe the same value: a validator would never finish with such a cycle.
fn unwind(defs: &mut BTreeMap<String, Value>) {
    let edges: BTreeMap<String, BTreeSet<String>> = defs
        .iter()
        .map(|(name, def)| {
            let mut to = BTreeSet::new();
            itself(&mut def.clone(), &mut |name| {
                to.insert(name.to_owned());
                false
            });
            (name.clone(), to)
        })
        .collect();
    let mut done = BTreeSet::new();
    let mut cuts = Vec::new();
    for start in edges.keys() {
        // This is a depth-first search, which keeps the path to the current definition.
        let mut way: Vec<(&String, Vec<&String>)> = Vec::new();
        if !done.contains(start) {
            way.push((start, edges[start].iter().collect()));
        }
        while let Some((name, rest)) = way.last_mut() {
            let name = *name;
            let Some(next) = rest.pop() else {
                done.insert(name.clone());
                way.pop();
                continue;
            };
            if way.iter().any(|(above, _)| *above == next) {
                cuts.push((name.clone(), next.clone()));
            } else if !done.contains(next)
                && let Some(further) = edges.get(next)
            {
                way.push((next, further.iter().collect()));
            }
        }
    }
    for (from, to) in cuts {
        if let Some(def) = defs.get_mut(&from) {
            itself(def, &mut |name| name == to);
        }
    }
}

/// Calls `cut` for each definition that describes the same value as `schema`, and removes the reference if `cut`
/// returns true.
fn itself(schema: &mut Value, cut: &mut dyn FnMut(&str) -> bool) {
    let Value::Object(schema) = schema else {
        return;
    };
    let named = schema.get("$ref").and_then(Value::as_str);
    let named = named.and_then(|to| to.strip_prefix("#/$defs/"));
    if named.is_some_and(&mut *cut) {
        schema.remove("$ref");
    }
    for keyword in ITSELF {
        if let Some(one) = schema.get_mut(keyword) {
            itself(one, cut);
        }
    }
    for keyword in LISTS {
        if let Some(Value::Array(list)) = schema.get_mut(keyword) {
            list.iter_mut().for_each(|one| itself(one, cut));
        }
    }
}

/// The first `most` characters of a text, on one line.
pub(super) fn brief(text: &str, most: usize) -> String {
    let mut brief: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(most)
        .collect();
    if brief.len() < text.len() && text.chars().nth(most).is_some() {
        brief.push('…');
    }
    brief.trim().to_owned()
}
