//! Checks of JSON values against a schema.

mod dims;
mod keywords;
mod lower;

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use crate::error::{TypedefError, Violation, short};
use crate::limits::{PATTERN_BYTES_MAX, VIOLATIONS_MAX};
use crate::model::{LayoutMode, LayoutNode};
use crate::schema::{Result, Schema};
use crate::tensor::Dims;

/// A compiled schema.
#[derive(Debug)]
pub(crate) struct TypedefValidator {
    validator: Validator,
    /// Whether sizes have names, so that tensors have to be checked together.
    symbols: bool,
}

impl TypedefValidator {
    pub(crate) fn new(
        schema: &Schema,
        ptr: &str,
        root: &LayoutNode,
        mode: LayoutMode,
    ) -> Result<Self> {
        let lowered = lower::lower(schema.normalized(), ptr)?;
        let options = jsonschema::options()
            .with_draft(Draft::Draft202012)
            // The library fetches nothing that a caller's schema names.
            .offline()
            // A caller may write the pattern: this engine takes time by the length of the text.
            .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES_MAX))
            // JSON Schema Validation, section 7.2.1: `format` describes a value and asserts nothing.
            .should_validate_formats(false);
        let validator = keywords::with_all(options, mode).build(&lowered);
        Ok(Self {
            validator: validator.map_err(|error| wrong_schema(&error))?,
            symbols: root.symbols,
        })
    }

    pub(crate) fn is_valid(&self, root: &LayoutNode, value: &Value) -> bool {
        self.validator.is_valid(value)
            && (!self.symbols || dims::bind(root, value, &mut Dims::new()).is_ok())
    }

    /// Fails with the violations of `value`. Its named sizes go to `dims`, which stays as it was where the check
    /// fails.
    pub(crate) fn check(&self, root: &LayoutNode, value: &Value, dims: &mut Dims) -> Result<()> {
        // First without messages, which is faster: most values are valid.
        if !self.validator.is_valid(value) {
            let errors = self.validator.iter_errors(value).take(VIOLATIONS_MAX);
            return Err(TypedefError::Validation(
                errors.map(|e| violation(&e)).collect(),
            ));
        }
        // Sizes without names need no comparison between tensors.
        if !self.symbols {
            return Ok(());
        }
        let mut bound = dims.clone();
        let result = dims::bind(root, value, &mut bound);
        result.map_err(|violation| TypedefError::Validation(vec![violation]))?;
        *dims = bound;
        Ok(())
    }
}

fn violation(error: &jsonschema::ValidationError<'_>) -> Violation {
    Violation {
        path: error.instance_path().as_str().to_owned(),
        keyword: error.kind().keyword().to_owned(),
        message: short(&error.masked().to_string()),
    }
}

/// The library's error about a schema, at the path in the schema as the caller gave it.
fn wrong_schema(error: &jsonschema::ValidationError<'_>) -> TypedefError {
    let at = error.instance_path().as_str();
    let ptr = at.strip_prefix(lower::ROOT).unwrap_or(at);
    TypedefError::schema(ptr, short(&error.masked().to_string()))
}

#[cfg(test)]
mod tests;
