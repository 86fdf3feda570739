//! The pass over a schema that comes before everything else.
//!
//! It refuses unknown parts instead of ignoring them, and writes alternatives in one form: references as JSON
//! pointers, annotations in the value of their keyword. Its output passes unchanged.

pub(crate) mod annotations;
mod graph;
mod measure;
pub(crate) mod subschemas;
mod text;

use serde_json::{Map, Value};

pub use self::text::parse;
use crate::error::TypedefError;
use crate::kind::{FieldKind, MAX_BYTES, PREFIX};
use crate::limits::{PATTERNS_MAX, SchemaLimits};
use crate::pointer::{fragment, join, of_reference};
use graph::SchemaGraph;

pub(crate) type Result<T> = std::result::Result<T, TypedefError>;

/// The only vocabulary.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Keywords that give a schema another meaning in another context, and why the pass refuses them.
const REFUSED: [(&str, &str); 9] = [
    ("$anchor", "name the schema in $defs instead"),
    ("$dynamicAnchor", "what it names depends on who asks"),
    ("$dynamicRef", "what it names depends on who asks"),
    ("$recursiveAnchor", "draft 2020-12 has no such keyword"),
    ("$recursiveRef", "draft 2020-12 has no such keyword"),
    (
        "$vocabulary",
        "no vocabulary but those of draft 2020-12 is known",
    ),
    ("additionalItems", "draft 2020-12 writes items"),
    (
        "dependencies",
        "draft 2020-12 writes dependentSchemas and dependentRequired",
    ),
    ("id", "draft 2020-12 writes $id"),
];

/// A schema that went through the pass.
#[derive(Clone, Debug)]
pub struct Schema {
    root: Value,
    graph: SchemaGraph,
    limits: SchemaLimits,
}

impl Schema {
    /// Checks a schema, and writes it in the one form.
    ///
    /// # Errors
    /// The schema is larger than `limits`, or has a part that this crate does not know: [`TypedefError::Schema`] with
    /// the path.
    pub fn new(schema: &Value, limits: &SchemaLimits) -> Result<Self> {
        // First: the pass goes through the schema by recursion.
        measure::measure(schema, limits)?;
        let mut root = schema.clone();
        let mut pass = SchemaPass {
            graph: SchemaGraph::default(),
            patterns: 0,
        };
        pass.schema(&mut root, "")?;
        // Only now: a reference may name a later schema.
        pass.graph.check_references()?;
        Ok(Self {
            root,
            graph: pass.graph,
            limits: *limits,
        })
    }

    /// The schema in the one form.
    #[must_use]
    pub fn normalized(&self) -> &Value {
        &self.root
    }

    /// The limits it was read under.
    #[must_use]
    pub fn limits(&self) -> &SchemaLimits {
        &self.limits
    }

    /// The pointer in `definition`: `#/$defs/X`, `#`, or a bare `X` for `#/$defs/X`.
    pub(crate) fn pointer(&self, definition: &str) -> Result<String> {
        let reference = local(definition);
        let found = of_reference(&reference).filter(|ptr| self.graph.contains(ptr));
        found.ok_or_else(|| {
            TypedefError::schema("", format!("'{definition}' names no schema in it"))
        })
    }

    /// Checks that the schema at a pointer is finite.
    pub(crate) fn start(&self, ptr: &str) -> Result<()> {
        self.graph.check_expanded(ptr, &self.limits)
    }

    pub(crate) fn at(&self, ptr: &str) -> &Value {
        // Walking this very value made every pointer in the graph.
        self.root.pointer(ptr).unwrap_or(&Value::Null)
    }
}

/// The text of a `$ref`, where a bare name stands for the definition of that name.
fn local(reference: &str) -> String {
    let bare = !reference.is_empty() && !reference.contains(['#', '/', ':']);
    if bare {
        fragment(&join("/$defs", reference))
    } else {
        reference.to_owned()
    }
}

struct SchemaPass {
    graph: SchemaGraph,
    patterns: u64,
}

impl SchemaPass {
    /// Takes one schema and all below it; returns its number.
    fn schema(&mut self, schema: &mut Value, ptr: &str) -> Result<usize> {
        let number = self.graph.add(ptr);
        let keywords = match schema {
            Value::Bool(_) => return Ok(number),
            Value::Object(keywords) => keywords,
            _ => {
                return Err(TypedefError::schema(
                    ptr,
                    "a schema is an object, true or false",
                ));
            }
        };
        known_keywords(keywords, ptr)?;
        identity(keywords, ptr)?;
        if let Some(target) = reference(keywords, ptr)? {
            self.graph.refer(number, target);
        }
        kinds(keywords, ptr)?;
        self.count_patterns(keywords)?;
        subschemas::each(keywords, ptr, &mut |value, at| {
            let below = self.schema(value, at)?;
            // A definition applies only where a reference names it.
            let within = at.strip_prefix(ptr).unwrap_or(at);
            if !within.starts_with("/$defs/") && !within.starts_with("/definitions/") {
                self.graph.link(number, below);
            }
            Ok(())
        })?;
        Ok(number)
    }

    fn count_patterns(&mut self, keywords: &Map<String, Value>) -> Result<()> {
        let named = keywords.get("patternProperties").and_then(Value::as_object);
        self.patterns += named.map_or(0, Map::len) as u64;
        self.patterns += u64::from(keywords.contains_key("pattern"));
        if self.patterns > PATTERNS_MAX {
            return Err(TypedefError::limit("patterns in a schema", PATTERNS_MAX));
        }
        Ok(())
    }
}

fn known_keywords(keywords: &Map<String, Value>, ptr: &str) -> Result<()> {
    for (keyword, value) in keywords {
        let at = || join(ptr, keyword);
        if let Some((_, why)) = REFUSED.iter().find(|(name, _)| name == keyword)
            && (keyword != "id" || value.is_string())
        {
            return Err(TypedefError::schema(
                &at(),
                format!("{keyword} is not taken: {why}"),
            ));
        }
        // In any letter case: such a keyword is misspelt, and other readers would ignore it.
        let ours = keyword
            .get(..PREFIX.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX));
        if ours && keyword != MAX_BYTES && FieldKind::of_keyword(keyword).is_none() {
            return Err(TypedefError::schema(
                &at(),
                format!("no keyword {keyword} is known"),
            ));
        }
        if keyword == "items" && value.is_array() {
            let why = "draft 2020-12 writes prefixItems for a list of schemas";
            return Err(TypedefError::schema(&at(), why));
        }
    }
    Ok(())
}

/// A plain `$id` is how TypeBox remembers a name: it would only move the base of references.
fn identity(keywords: &mut Map<String, Value>, ptr: &str) -> Result<()> {
    if let Some(draft) = keywords.get("$schema")
        && draft
            .as_str()
            .is_none_or(|draft| draft.trim_end_matches('#') != DRAFT)
    {
        let why = format!("only {DRAFT} is known");
        return Err(TypedefError::schema(&join(ptr, "$schema"), why));
    }
    let at = || join(ptr, "$id");
    match keywords.get("$id") {
        None => return Ok(()),
        Some(Value::String(id)) if ptr.is_empty() || !id.contains(['#', '/', ':']) => {}
        Some(Value::String(_)) => {
            let why = "a schema within a schema has no address of its own";
            return Err(TypedefError::schema(&at(), why));
        }
        Some(_) => return Err(TypedefError::schema(&at(), "this is text")),
    }
    // References within the document are pointers, which do not depend on it.
    keywords.shift_remove("$id");
    Ok(())
}

/// Writes `$ref` as a pointer, and returns the pointer.
fn reference(keywords: &mut Map<String, Value>, ptr: &str) -> Result<Option<String>> {
    let Some(value) = keywords.get_mut("$ref") else {
        return Ok(None);
    };
    let invalid = |why: &str| TypedefError::schema(&join(ptr, "$ref"), why);
    let Value::String(text) = value else {
        return Err(invalid("this is text"));
    };
    let reference = local(text);
    let target = of_reference(&reference).ok_or_else(|| {
        invalid("only schemas of this document are named, as #/$defs/NAME or as NAME")
    })?;
    *text = reference;
    for (name, check) in [("align", beside_align as Beside), ("endian", beside_endian)] {
        if let Some(value) = keywords.get(name) {
            check(value, &join(ptr, name))?;
        }
    }
    Ok(Some(target))
}

type Beside = fn(&Value, &str) -> Result<()>;

fn beside_align(value: &Value, at: &str) -> Result<()> {
    annotations::align(value, at).map(|_| ())
}

fn beside_endian(value: &Value, at: &str) -> Result<()> {
    annotations::big_endian(value, at).map(|_| ())
}

/// Checks the values of this crate's keywords.
fn kinds(keywords: &mut Map<String, Value>, ptr: &str) -> Result<()> {
    let kind = kind_of(keywords, ptr)?;
    if let Some(max) = keywords.get(MAX_BYTES) {
        let at = join(ptr, MAX_BYTES);
        if max.as_u64().is_none_or(|max| u32::try_from(max).is_err()) {
            let why = "a number of bytes is whole, and below 2^32";
            return Err(TypedefError::schema(&at, why));
        }
        if kind.is_none_or(|kind| !kind.is_text()) {
            let why = "it says something of a String, Bytes or Timestamp only";
            return Err(TypedefError::schema(&at, why));
        }
    }
    let Some(kind) = kind else { return Ok(()) };
    // The reference may name another kind, and bytes have one.
    if keywords.contains_key("$ref") {
        let why = format!("{} and $ref both say what it is", kind.keyword());
        return Err(TypedefError::schema(ptr, why));
    }
    annotations::gather(keywords, kind, ptr)?;
    let at = join(ptr, kind.keyword());
    annotations::read(kind, &keywords[kind.keyword()], &at).map(|_| ())
}

/// The one kind of a schema.
pub(crate) fn kind_of(keywords: &Map<String, Value>, ptr: &str) -> Result<Option<FieldKind>> {
    let mut kinds = keywords
        .keys()
        .filter_map(|name| FieldKind::of_keyword(name));
    let first = kinds.next();
    if let (Some(first), Some(second)) = (first, kinds.next()) {
        let why = format!("{first} and {second} both say what it is");
        return Err(TypedefError::schema(ptr, why));
    }
    Ok(first)
}

#[cfg(test)]
mod tests;
