//! The steps that checking a value against a schema takes, at most.
//!
//! Follows the schema through the value as the validator does, without deciding anything: every branch
//! counts. What one reference leads to is counted once for each part of the value and added up from then
//! on, so that counting takes no longer than the budget although validating would.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::refs::{Base, Found, Names};
use crate::limits::{PATTERN_BYTES_MAX, SCHEMA_DEPTH_MAX, SCHEMA_STEPS_MAX};

/// Bytes of text that are compared, or counted, in one step.
const TEXT_BYTES_PER_STEP: u64 = 64;
/// States of a pattern that take one byte in one step.
const STATES_PER_STEP: u64 = 64;
/// Bytes that one state of a compiled pattern takes, about.
const STATE_BYTES: u64 = 32;
/// Up to so many items are compared with each other, more by their hashes.
const PAIRWISE_MAX: u64 = 15;
/// Steps of one part of a value that has to be a schema itself.
const META_STEPS: u64 = 100;
/// Why counting ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// References follow each other too far.
    Deep,
    /// A reference to what is not there.
    Reference(String),
    /// There are more than a check may take.
    Steps,
}

/// Counts the steps of checking `value`, [`SCHEMA_STEPS_MAX`] at most.
pub(super) fn count(schema: &Value, value: &Value) -> Result<u64, Stop> {
    let mut counter = Counter {
        left: SCHEMA_STEPS_MAX,
        names: Names::new(schema),
        known: HashMap::new(),
        plain_enums: HashMap::new(),
        depth: 0,
    };
    let steps = counter.within(schema, Base::of(schema), At::Value(value))?;
    match steps.valid <= SCHEMA_STEPS_MAX {
        true => Ok(steps.valid),
        false => Err(Stop::Steps),
    }
}

/// The parts of a value: values, names and pieces of text; `None` if there are more than `most`.
pub(super) fn parts(value: &Value, most: u64) -> Option<u64> {
    let mut left = most;
    take_parts(value, &mut left)?;
    Some(most - left)
}

fn take_parts(value: &Value, left: &mut u64) -> Option<()> {
    let mut take = |bytes: usize| {
        *left = left.checked_sub(1 + text(bytes))?;
        Some(())
    };
    match value {
        Value::String(text) => take(text.len()),
        Value::Array(items) => {
            take(0)?;
            items.iter().try_for_each(|item| take_parts(item, left))
        }
        Value::Object(members) => {
            take(0)?;
            members.iter().try_for_each(|(name, member)| {
                *left = left.checked_sub(text(name.len()))?;
                take_parts(member, left)
            })
        }
        _ => take(0),
    }
}

fn text(bytes: usize) -> u64 {
    bytes as u64 / TEXT_BYTES_PER_STEP
}

/// What a schema is applied to.
#[derive(Clone, Copy)]
enum At<'v> {
    Name(&'v str),
    Value(&'v Value),
}

impl<'v> At<'v> {
    fn address(self) -> usize {
        match self {
            Self::Name(name) => name.as_ptr() as usize,
            Self::Value(value) => std::ptr::from_ref(value) as usize,
        }
    }

    fn text(self) -> Option<&'v str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Value(value) => value.as_str(),
        }
    }

    fn items(self) -> &'v [Value] {
        match self {
            Self::Value(Value::Array(items)) => items,
            _ => &[],
        }
    }

    fn members(self) -> Option<&'v Map<String, Value>> {
        match self {
            Self::Value(Value::Object(members)) => Some(members),
            _ => None,
        }
    }
}

/// Steps of one schema at one part of a value.
#[derive(Clone, Copy, Default)]
struct Steps {
    /// Whether it fits.
    valid: u64,
    /// Which members or items it has looked at, for an `unevaluated…` around it: every branch is checked
    /// once more for that.
    mark: u64,
}

impl Steps {
    fn add(&mut self, steps: u64) {
        self.valid = self.valid.saturating_add(steps);
    }

    /// Of a schema for the same part.
    fn same(&mut self, also: Self) {
        self.add(also.valid);
        let mark = also.valid.saturating_add(also.mark);
        self.mark = self.mark.saturating_add(mark);
    }

    /// Of a schema for what lies within, which `unevaluated…` asks again.
    fn left_over(&mut self, part: Self) {
        self.add(part.valid);
        self.mark = self.mark.saturating_add(part.valid);
    }
}

struct Counter<'s> {
    /// Steps of counting itself.
    left: u64,
    names: Names<'s>,
    /// By the address of a reference's target and of the part.
    known: HashMap<(usize, usize), Steps>,
    /// Whether an `enum` has texts only, by its address.
    plain_enums: HashMap<usize, bool>,
    depth: usize,
}

impl<'s> Counter<'s> {
    fn spend(&mut self, steps: u64) -> Result<(), Stop> {
        self.left = self.left.checked_sub(steps).ok_or(Stop::Steps)?;
        Ok(())
    }

    fn within(&mut self, schema: &'s Value, base: Base<'s>, at: At<'_>) -> Result<Steps, Stop> {
        self.spend(1)?;
        let Value::Object(words) = schema else {
            return Ok(Steps { valid: 1, mark: 1 });
        };
        if self.depth >= SCHEMA_DEPTH_MAX {
            return Err(Stop::Deep);
        }
        self.depth += 1;
        let base = base.at(schema, words);
        let size = 1 + words.len() as u64;
        let mut steps = Steps {
            valid: size,
            mark: size,
        };
        for (word, value) in words {
            self.word(&mut steps, words, (word, value), base, at)?;
        }
        let looks = |word: &str| words.contains_key(word);
        if looks("unevaluatedProperties") || looks("unevaluatedItems") {
            steps.add(steps.mark);
        }
        self.depth -= 1;
        Ok(steps)
    }

    fn word(
        &mut self,
        steps: &mut Steps,
        words: &'s Map<String, Value>,
        (word, value): (&str, &'s Value),
        base: Base<'s>,
        at: At<'_>,
    ) -> Result<(), Stop> {
        match (word, value) {
            ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(to)) => {
                self.reference(steps, word, to, base, at)
            }
            ("allOf" | "anyOf" | "oneOf", Value::Array(all)) => all.iter().try_for_each(|one| {
                steps.same(self.within(one, base, at)?);
                Ok(())
            }),
            ("else" | "if" | "not" | "then", _) => {
                steps.same(self.within(value, base, at)?);
                Ok(())
            }
            ("enum", Value::Array(options)) => self.compare(steps, options, at),
            ("const", _) => self.compare(steps, std::slice::from_ref(value), at),
            ("pattern", Value::String(pattern)) => {
                if let Some(text) = at.text() {
                    steps.add(matching(pattern, text));
                }
                Ok(())
            }
            ("maxLength" | "minLength", _) => {
                steps.add(at.text().map_or(0, |text| self::text(text.len())));
                Ok(())
            }
            _ => match at {
                At::Value(Value::Array(items)) => self.items(steps, (word, value), base, items),
                At::Value(Value::Object(members)) => {
                    self.members(steps, words, (word, value), base, at, members)
                }
                _ => Ok(()),
            },
        }
    }

    fn items(
        &mut self,
        steps: &mut Steps,
        (word, value): (&str, &'s Value),
        base: Base<'s>,
        items: &[Value],
    ) -> Result<(), Stop> {
        match (word, value) {
            ("items" | "prefixItems", Value::Array(places)) => {
                for (place, item) in places.iter().zip(items) {
                    steps.add(self.within(place, base, At::Value(item))?.valid);
                }
            }
            ("additionalItems" | "contains" | "items", each) => {
                for item in items {
                    steps.add(self.within(each, base, At::Value(item))?.valid);
                }
                // `contains` says which items it has looked at.
                steps.mark = steps.mark.saturating_add(match word {
                    "contains" => steps.valid,
                    _ => items.len() as u64,
                });
            }
            ("unevaluatedItems", each) => {
                for item in items {
                    steps.left_over(self.within(each, base, At::Value(item))?);
                }
            }
            ("uniqueItems", Value::Bool(true)) => {
                let mut all = 0;
                for item in items {
                    all += self.parts(item)?;
                }
                let pairwise = items.len() as u64 <= PAIRWISE_MAX;
                steps.add(all.saturating_mul(if pairwise { PAIRWISE_MAX } else { 2 }));
            }
            _ => {}
        }
        Ok(())
    }

    fn members(
        &mut self,
        steps: &mut Steps,
        words: &'s Map<String, Value>,
        (word, value): (&str, &'s Value),
        base: Base<'s>,
        at: At<'_>,
        members: &Map<String, Value>,
    ) -> Result<(), Stop> {
        let own = words.get("properties").and_then(Value::as_object);
        match (word, value) {
            ("properties", Value::Object(own)) => {
                steps.add(own.len() as u64);
                for (name, member) in members {
                    if let Some(schema) = own.get(name) {
                        steps.add(self.within(schema, base, At::Value(member))?.valid);
                    }
                }
                steps.mark = steps.mark.saturating_add(members.len() as u64);
            }
            ("additionalProperties", each) => {
                let others = members.iter();
                let others =
                    others.filter(|(name, _)| !own.is_some_and(|it| it.contains_key(*name)));
                for (_, member) in others {
                    steps.add(self.within(each, base, At::Value(member))?.valid);
                }
                steps.mark = steps.mark.saturating_add(members.len() as u64);
            }
            ("patternProperties", Value::Object(patterns)) => {
                for (name, member) in members {
                    for (pattern, schema) in patterns {
                        let matching = matching(pattern, name);
                        steps.add(matching);
                        steps.mark = steps.mark.saturating_add(matching);
                        steps.add(self.within(schema, base, At::Value(member))?.valid);
                    }
                }
            }
            ("propertyNames", each) => {
                for name in members.keys() {
                    steps.add(self.within(each, base, At::Name(name))?.valid);
                }
            }
            ("unevaluatedProperties", each) => {
                for member in members.values() {
                    steps.left_over(self.within(each, base, At::Value(member))?);
                }
            }
            ("dependencies" | "dependentSchemas", Value::Object(all)) => {
                steps.add(all.len() as u64);
                for (name, schema) in all {
                    match schema {
                        Value::Array(names) => steps.add(names.len() as u64),
                        _ if !members.contains_key(name) => {}
                        _ => steps.same(self.within(schema, base, at)?),
                    }
                }
            }
            ("dependentRequired", Value::Object(all)) => {
                let names = |names: &Value| names.as_array().map_or(0, Vec::len);
                steps.add(all.values().map(|value| 1 + names(value) as u64).sum());
            }
            ("required", Value::Array(names)) => steps.add(names.len() as u64),
            _ => {}
        }
        Ok(())
    }

    /// Values are compared until one is equal. Texts are found by their hash.
    fn compare(&mut self, steps: &mut Steps, options: &'s [Value], at: At<'_>) -> Result<(), Stop> {
        match at {
            At::Value(Value::Array(_) | Value::Object(_)) => {
                for option in options {
                    if matches!(option, Value::Array(_) | Value::Object(_)) {
                        steps.add(self.parts(option)?);
                    } else {
                        steps.add(1);
                    }
                }
            }
            _ => {
                let text = 1 + at.text().map_or(0, |text| self::text(text.len()));
                let address = options.as_ptr() as usize;
                let plain = self.plain_enums.get(&address).copied();
                let plain = plain.unwrap_or_else(|| options.iter().all(Value::is_string));
                self.plain_enums.insert(address, plain);
                let compared = if plain {
                    PAIRWISE_MAX.min(options.len() as u64)
                } else {
                    options.len() as u64
                };
                steps.add(compared.saturating_mul(text));
            }
        }
        Ok(())
    }

    /// The parts of `value`, which were counted.
    fn parts(&mut self, value: &Value) -> Result<u64, Stop> {
        let parts = parts(value, self.left).ok_or(Stop::Steps)?;
        self.spend(parts)?;
        Ok(parts)
    }

    fn reference(
        &mut self,
        steps: &mut Steps,
        word: &str,
        to: &str,
        base: Base<'s>,
        at: At<'_>,
    ) -> Result<(), Stop> {
        let targets = match self.names.of(word, to, base) {
            Some(Found::In(targets)) => targets,
            Some(Found::Meta) => {
                let parts = match at {
                    At::Name(_) => 1,
                    At::Value(value) => self.parts(value)?,
                };
                steps.add(parts.saturating_mul(META_STEPS));
                return Ok(());
            }
            None => return Err(Stop::Reference(to.chars().take(160).collect())),
        };
        for target in targets {
            let key = (std::ptr::from_ref(target.schema) as usize, at.address());
            let known = match self.known.get(&key) {
                Some(known) => *known,
                None => {
                    // What leads back to itself is followed once.
                    self.known.insert(key, Steps::default());
                    let found = self.within(target.schema, target.base, at)?;
                    self.known.insert(key, found);
                    found
                }
            };
            steps.same(known);
        }
        Ok(())
    }
}

/// Steps of looking for a pattern. The engine takes time by the length of the text and, at worst, by the
/// states of the pattern, which counted repetitions multiply.
fn matching(pattern: &str, text: &str) -> u64 {
    let most = PATTERN_BYTES_MAX as u64 / STATE_BYTES;
    let states = repetitions(pattern).saturating_mul(pattern.len() as u64);
    let each = 1 + states.min(most) / STATES_PER_STEP;
    1 + (text.len() as u64).saturating_mul(each)
}

/// The product of all counted repetitions of a pattern.
fn repetitions(pattern: &str) -> u64 {
    let counts = pattern.split('{').skip(1).filter_map(|rest| {
        let count = rest.split('}').next()?;
        let most = count.rsplit(',').find(|number| !number.is_empty())?;
        most.parse::<u64>().ok()
    });
    counts.fold(1, |product, count| product.saturating_mul(count.max(1)))
}
