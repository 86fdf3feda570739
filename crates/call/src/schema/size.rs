//! The cost of a schema before any value is checked against it.
//!
//! The library compiles each value of a schema, with the whole path to it as a text. It compiles the target of each
//! reference once more, and everything again for each way through resources with identifiers of their own, since the
//! meaning of `$dynamicRef` depends on the way. A schema of a few kilobytes can thus make it take gigabytes. This
//! module counts all of that first.

use std::collections::HashSet;

use jsonschema::json::SerdeJson;
use regex_automata::meta;
use serde_json::{Map, Value};

use super::SchemaError;
use super::refs::{ResolvedReference, SchemaBaseUri, SchemaResolver, identifier};
use super::steps::{self, StepCountStop};
use crate::limits::{
    PATTERN_BYTES_MAX, PATTERN_BYTES_PER_STEP, PATTERN_CACHE_BYTES_MAX, PATTERN_STEPS,
    SCHEMA_BUILT_MAX, SCHEMA_PATH_BYTES_MAX, SCHEMA_PATTERN_BYTES_MAX, SCHEMA_PATTERNS_MAX,
    SCHEMA_STEPS_MAX, SCHEMA_VALUES_MAX,
};

/// Keywords that make the work on one part of a value depend on more than the schema's size.
const UNEVEN: [&str; 11] = [
    "$dynamicRef",
    "$recursiveRef",
    "$ref",
    "contentEncoding",
    "contentMediaType",
    "pattern",
    "patternProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Keywords whose schemas `unevaluatedProperties` and `unevaluatedItems` beside them evaluate, for which the library
/// compiles these once more.
const LOOKED_INTO: [&str; 14] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "dependentSchemas",
    "else",
    "if",
    "items",
    "oneOf",
    "prefixItems",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Keywords that refer to another part.
const REFERENCES: [&str; 3] = ["$dynamicRef", "$recursiveRef", "$ref"];

/// Values that the library makes of a schema of schemas, about.
const META_VALUES: u64 = 1_000;
/// Bytes of the number of an item in a path.
const NUMBER_BYTES: usize = 6;
/// Resources with an identifier of their own beside the schema itself: with two, the ways through them are too many
/// to count.
const EMBEDDED_MAX: u64 = 1;

/// The known cost of an admitted schema.
pub(super) struct SchemaCost {
    /// The steps that each part of a value takes, where that is a constant.
    pub(super) flat: Option<u64>,
    /// The steps of a check that goes into nothing within the value.
    pub(super) steps: u64,
}

/// Refuses a schema that takes too much to compile, or to evaluate for any value at all. The steps of compiling its
/// patterns come out of `left`, whatever other faults it has.
pub(super) fn admit(schema: &Value, left: &mut u64) -> Result<SchemaCost, SchemaError> {
    let mut seen = SchemaScan::default();
    let whole = seen.built(schema, SchemaBaseUri::from_root(schema));
    if whole.once.values > SCHEMA_VALUES_MAX {
        return Err(SchemaError::TooMuch(
            "the schema has more values than a schema may, or compiles to more",
        ));
    }
    if seen.patterns > SCHEMA_PATTERNS_MAX {
        return Err(SchemaError::TooMuch("the schema has too many patterns"));
    }
    seen.made(schema, whole.once)?;
    seen.compiled_patterns(left)?;
    // Every part of a value takes the same steps: the count of parts suffices later.
    if !seen.uneven {
        let each = whole.once.values.max(1).saturating_add(seen.name_pieces);
        return Ok(SchemaCost {
            flat: Some(each),
            steps: each,
        });
    }
    match steps::count::<SerdeJson>(schema, &Value::Null, SCHEMA_STEPS_MAX) {
        Ok(steps) => Ok(SchemaCost { flat: None, steps }),
        Err(StepCountStop::Deep) => Err(SchemaError::TooMuch(
            "references of the schema follow each other too far",
        )),
        Err(StepCountStop::Reference(to)) => Err(SchemaError::Reference(to)),
        Err(StepCountStop::Steps) => Err(SchemaError::TooMuch(
            "evaluating the schema takes more steps than a check may, whatever the value",
        )),
    }
}

/// The facts that a scan of a schema collects.
#[derive(Default)]
struct SchemaScan<'s> {
    patterns: u64,
    different_patterns: HashSet<&'s str>,
    uneven: bool,
    /// Pieces of long names, which the validator compares with those of each object.
    name_pieces: u64,
    /// References by their keyword, their text and their base, each different one once.
    references: Vec<(&'s str, &'s str, SchemaBaseUri<'s>)>,
    different_references: HashSet<(&'s str, (usize, usize))>,
    /// Identifiers, and those of older drafts only.
    identifiers: u64,
    old_identifiers: u64,
    longest_identifier: u64,
    is_old: bool,
}

/// The library's allocation.
#[derive(Clone, Copy, Debug, Default)]
struct SchemaAllocation {
    /// Values that it compiles.
    values: u64,
    /// Bytes of their texts, and of the path to each.
    bytes: u64,
}

impl SchemaAllocation {
    fn add(&mut self, more: Self) {
        self.values = self.values.saturating_add(more.values);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    /// Like `add`, with a longer path to all of it.
    const fn under(self, name: usize) -> Self {
        let longer = self.values.saturating_mul(name as u64 + 1);
        Self {
            values: self.values,
            bytes: self.bytes.saturating_add(longer),
        }
    }

    const fn times(self, times: u64) -> Self {
        Self {
            values: self.values.saturating_mul(times),
            bytes: self.bytes.saturating_mul(times),
        }
    }
}

/// The library's allocation for a part of a schema.
#[derive(Clone, Copy, Default)]
struct CompiledSchemaCost {
    /// For compiling the schema.
    once: SchemaAllocation,
    /// Once more for each `unevaluated…` that evaluates it.
    again: SchemaAllocation,
}

impl CompiledSchemaCost {
    fn add(&mut self, part: Self, name: usize, looked_into: bool) {
        let part = Self {
            once: part.once.under(name),
            again: part.again.under(name),
        };
        self.once.add(part.once);
        if looked_into {
            self.again.add(part.once);
            self.again.add(part.again);
        }
    }
}

impl<'s> SchemaScan<'s> {
    /// The recursion is as deep as the values, and a JSON text bounds that.
    fn built(&mut self, schema: &'s Value, base: SchemaBaseUri<'s>) -> CompiledSchemaCost {
        let own = SchemaAllocation {
            values: 1,
            bytes: schema.as_str().map_or(0, str::len) as u64,
        };
        let mut built = CompiledSchemaCost {
            once: own,
            again: own,
        };
        match schema {
            Value::Array(items) => {
                for item in items {
                    self.name_pieces += item.as_str().map_or(0, |name| steps::text(name.len()));
                    built.add(self.built(item, base), NUMBER_BYTES, true);
                }
            }
            Value::Object(words) => {
                let base = base.at(schema, words);
                self.identify(words);
                for (word, value) in words {
                    self.name_pieces += steps::text(word.len());
                    self.meet(word, value, base);
                    let looked_into = LOOKED_INTO.contains(&word.as_str());
                    built.add(self.built(value, base), word.len(), looked_into);
                }
                if looks(words) {
                    let again = built.again;
                    built.once.add(again);
                }
            }
            _ => {}
        }
        built
    }

    fn identify(&mut self, words: &'s Map<String, Value>) {
        for (word, count) in [
            ("$id", &mut self.identifiers),
            ("id", &mut self.old_identifiers),
        ] {
            if let Some(id) = identifier(words, word) {
                *count += 1;
                self.longest_identifier = self.longest_identifier.max(id.len() as u64);
            }
        }
    }

    fn meet(&mut self, word: &'s str, value: &'s Value, base: SchemaBaseUri<'s>) {
        self.uneven |= UNEVEN.contains(&word);
        match (word, value) {
            ("$schema", Value::String(draft)) => self.is_old |= draft.contains("draft-04"),
            ("pattern", Value::String(pattern)) => self.pattern(pattern),
            ("patternProperties", Value::Object(all)) => {
                all.keys().for_each(|pattern| self.pattern(pattern));
            }
            (_, Value::String(to))
                if REFERENCES.contains(&word)
                    && self.different_references.insert((to, base.identity())) =>
            {
                self.references.push((word, to, base));
            }
            _ => {}
        }
    }

    fn pattern(&mut self, pattern: &'s str) {
        self.patterns += 1;
        self.different_patterns.insert(pattern);
    }

    /// Counts the targets of references, and the ways to them.
    fn made(&self, schema: &'s Value, mut all: SchemaAllocation) -> Result<(), SchemaError> {
        let too_much = || {
            Err(SchemaError::TooMuch(
                "the schema compiles to more than a schema may: names are too long, or references lead to \
                 too much",
            ))
        };
        let identifiers = self.identifiers + if self.is_old { self.old_identifiers } else { 0 };
        let own = |word| schema.as_object().and_then(|words| identifier(words, word));
        let own = own("$id").or_else(|| own("id").filter(|_| self.is_old));
        let embedded = identifiers.saturating_sub(u64::from(own.is_some()));
        if embedded > EMBEDDED_MAX {
            return Err(SchemaError::TooMuch(
                "the schema has more than one part with an identifier of its own",
            ));
        }
        let ways = 1 + embedded * self.references.len() as u64;
        let longest = if identifiers > 0 {
            self.longest_identifier
        } else {
            0
        };
        // The compiler may write the resource's identifier before a path.
        let whole = |made: SchemaAllocation| {
            let mut made = made.times(ways);
            made.bytes = made
                .bytes
                .saturating_add(made.values.saturating_mul(longest));
            made
        };
        let is_more = |made: SchemaAllocation| {
            let made = whole(made);
            made.values > SCHEMA_BUILT_MAX || made.bytes > SCHEMA_PATH_BYTES_MAX
        };
        let mut names = SchemaResolver::new(schema);
        for &(word, to, base) in &self.references {
            if is_more(all) {
                return too_much();
            }
            match names.resolve(word, to, base) {
                Some(ResolvedReference::In(targets)) => {
                    for target in targets {
                        let built = SchemaScan::default().built(target.schema, target.base);
                        all.add(built.once.under(to.len()));
                    }
                }
                Some(ResolvedReference::Meta) => all.add(SchemaAllocation {
                    values: META_VALUES,
                    bytes: 0,
                }),
                // The compiler reports it, unless it is not a reference at all.
                None => {}
            }
        }
        if is_more(all) {
            return too_much();
        }
        Ok(())
    }

    /// Compiles each pattern as the library does, one at a time, since a pattern's cost does not follow from its
    /// length: a limit for each alone would have to be too low for some, or allow too much together.
    fn compiled_patterns(&self, left: &mut u64) -> Result<(), SchemaError> {
        let mut bytes_left = SCHEMA_PATTERN_BYTES_MAX;
        for pattern in &self.different_patterns {
            let pattern = PatternCost::compiled(pattern);
            *left = left
                .checked_sub(pattern.steps())
                .ok_or(SchemaError::TooMuch(
                    "compiling its patterns and those of the other schemas that come with it takes too many steps",
                ))?;
            bytes_left = bytes_left
                .checked_sub(pattern.retained)
                .ok_or(SchemaError::TooMuch(
                    "the patterns of the schema take too much memory",
                ))?;
        }
        Ok(())
    }
}

/// The cost of a pattern.
#[derive(Default)]
struct PatternCost {
    /// Bytes allocated for it: also for one that the compiler gives up because it has too many.
    made: usize,
    /// Bytes of its compiled form.
    retained: usize,
}

impl PatternCost {
    fn compiled(pattern: &str) -> Self {
        let config = meta::Config::new()
            .nfa_size_limit(Some(PATTERN_BYTES_MAX))
            .hybrid_cache_capacity(PATTERN_CACHE_BYTES_MAX);
        // The compiler of the schema reports the fault of the pattern.
        let Ok(pattern) = jsonschema_regex::to_rust_regex(pattern) else {
            return Self::default();
        };
        match meta::Builder::new().configure(config).build(&pattern) {
            Ok(compiled) => {
                let retained = compiled.memory_usage();
                Self {
                    made: retained,
                    retained,
                }
            }
            Err(error) => Self {
                made: error.size_limit().unwrap_or_default(),
                retained: 0,
            },
        }
    }

    fn steps(&self) -> u64 {
        PATTERN_STEPS + (self.made / PATTERN_BYTES_PER_STEP) as u64
    }
}

fn looks(words: &Map<String, Value>) -> bool {
    words.contains_key("unevaluatedProperties") || words.contains_key("unevaluatedItems")
}
