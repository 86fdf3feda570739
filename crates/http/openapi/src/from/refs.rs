//! The document and the targets of its references.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::error::DocumentError;
use super::limits::REFS_MAX;
use super::read::read;

/// A parsed document of a known version.
#[derive(Debug)]
pub(super) struct OpenApiSourceDocument {
    root: Value,
}

impl OpenApiSourceDocument {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let root = read(bytes)?;
        let version = match (root.get("openapi"), root.get("swagger")) {
            (Some(Value::String(version)), _) => version.clone(),
            // YAML reads a version without quotes as a number.
            (Some(Value::Number(version)), _) => version.to_string(),
            (None, Some(Value::String(version))) => version.clone(),
            _ => return Err(DocumentError::shape("/openapi", "the version of OpenAPI")),
        };
        let known = ["3.0", "3.1"].iter().any(|known| {
            let rest = version.strip_prefix(known);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        match known {
            true => Ok(Self { root }),
            false => Err(DocumentError::Version(version.chars().take(32).collect())),
        }
    }

    pub(super) fn root(&self) -> &Value {
        &self.root
    }

    /// The node that `node` at `at` stands for: itself, or the final target of its reference.
    pub(super) fn resolve<'a>(
        &'a self,
        node: &'a Value,
        at: &str,
    ) -> Result<&'a Value, DocumentError> {
        match reference(node) {
            Some(first) => Ok(self.end_of(first, at)?.1),
            None => Ok(node),
        }
    }

    /// Like [`resolve`](Self::resolve), for a node that must be an object.
    pub(super) fn object<'a>(
        &'a self,
        node: &'a Value,
        at: &str,
    ) -> Result<&'a Map<String, Value>, DocumentError> {
        let node = self.resolve(node, at)?.as_object();
        node.ok_or_else(|| DocumentError::shape(at, "an object"))
    }

    /// The last reference of the chain that begins with `first`, and its target.
    pub(super) fn end_of<'a>(
        &'a self,
        first: &'a str,
        at: &str,
    ) -> Result<(&'a str, &'a Value), DocumentError> {
        let mut last = first;
        for _ in 0..REFS_MAX {
            let there = self.at(last, at)?;
            match reference(there) {
                Some(next) => last = next,
                None => return Ok((last, there)),
            }
        }
        Err(DocumentError::Endless { at: at.to_owned() })
    }

    fn at(&self, reference: &str, at: &str) -> Result<&Value, DocumentError> {
        let named = |text: &str| text.chars().take(200).collect::<String>();
        let Some(pointer) = reference.strip_prefix('#') else {
            return Err(DocumentError::External {
                reference: named(reference),
                at: at.to_owned(),
            });
        };
        // A pointer in a URI has the escapes of a fragment (RFC 6901 section 6).
        let pointer = percent_decode_str(pointer).decode_utf8_lossy();
        self.root
            .pointer(&pointer)
            .ok_or_else(|| DocumentError::Missing {
                reference: named(reference),
                at: at.to_owned(),
            })
    }
}

/// The reference of `node`, if it is one.
pub(super) fn reference(node: &Value) -> Option<&str> {
    node.as_object()?.get("$ref")?.as_str()
}

/// `name` as a part of a JSON pointer.
pub(super) fn escaped(name: &str) -> String {
    // `~` is replaced first, or the `~` of `~1` would be escaped twice (RFC 6901 section 3).
    name.replace('~', "~0").replace('/', "~1")
}
