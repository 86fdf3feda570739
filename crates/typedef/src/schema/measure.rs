//! Measures a schema before any recursion into it.

use serde_json::Value;

use super::Result;
use crate::error::TypedefError;
use crate::limits::{PATH_BYTES_MAX, SchemaLimits};

/// Refuses a schema that is too deep, too large, or has paths that are too long.
pub(super) fn measure(schema: &Value, limits: &SchemaLimits) -> Result<()> {
    let mut measure = SchemaMeasure {
        limits,
        nodes: 0,
        text: 0,
    };
    // No recursion: the depth is not known yet.
    let mut open = vec![(schema, 1, 0)];
    while let Some((value, depth, path)) = open.pop() {
        measure.take(value, depth)?;
        match value {
            Value::Array(items) => {
                // A slash and at most five digits: there are no more items than nodes.
                let path = longer(path, 6)?;
                measure.count(items.len())?;
                open.extend(items.iter().map(|item| (item, depth + 1, path)));
            }
            Value::Object(members) => {
                measure.count(members.len())?;
                for (name, value) in members {
                    measure.text(name)?;
                    open.push((value, depth + 1, longer(path, 1 + name.len() as u64)?));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

struct SchemaMeasure<'l> {
    limits: &'l SchemaLimits,
    nodes: u64,
    text: u64,
}

impl SchemaMeasure<'_> {
    fn take(&mut self, value: &Value, depth: u64) -> Result<()> {
        let nests = matches!(value, Value::Array(_) | Value::Object(_));
        if nests && depth > self.limits.depth {
            let what = "objects and arrays within each other in a schema";
            return Err(TypedefError::limit(what, self.limits.depth));
        }
        match value {
            Value::String(text) => self.text(text),
            _ => Ok(()),
        }
    }

    /// Counted before the walk adds them, so that the open list is bounded too.
    fn count(&mut self, children: usize) -> Result<()> {
        self.nodes = self.nodes.saturating_add(children as u64);
        if self.nodes >= self.limits.nodes {
            return Err(TypedefError::limit("values in a schema", self.limits.nodes));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.text = self.text.saturating_add(text.len() as u64);
        if self.text > self.limits.schema_bytes {
            let max = self.limits.schema_bytes;
            return Err(TypedefError::limit("bytes of a schema", max));
        }
        Ok(())
    }
}

fn longer(path: u64, by: u64) -> Result<u64> {
    let path = path + by;
    if path > PATH_BYTES_MAX {
        let what = "bytes of a pointer to a part of a schema";
        return Err(TypedefError::limit(what, PATH_BYTES_MAX));
    }
    Ok(path)
}
