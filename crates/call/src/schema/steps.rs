//! An upper bound of the steps that checking a value against a schema takes.
//!
//! The counter follows the schema through the value as the validator does, without deciding anything: every branch
//! counts. It counts the target of one reference once for each part of the value and adds that up from then on, so
//! that counting takes no longer than the budget although validating would. For that, counting spends a budget of its
//! own on everything that it does: on each text that it decodes by its bytes, and on each schema that it goes through
//! by its words.

use std::borrow::Cow;
use std::collections::HashMap;

use jsonschema::JsonType;
use jsonschema::json::{Array, Json, Node, NodeIdentity, Object, SerdeJson};
use serde_json::{Map, Value};

use super::refs::{ResolvedReference, SchemaBaseUri, SchemaResolver};
use crate::limits::{PATTERN_BYTES_MAX, SCHEMA_DEPTH_MAX};

/// Bytes of text that one step compares or counts.
const TEXT_BYTES_PER_STEP: u64 = 64;
/// The factor for the steps of a text written with escapes: up to six bytes for each of its own.
const ESCAPED_STEPS: u64 = 4;
/// Steps for as many bytes of a text that the validator decodes, or reads as JSON.
const DECODING_STEPS: u64 = 8;
/// States of a pattern that take one byte in one step.
const STATES_PER_STEP: u64 = 64;
/// Bytes that one state of a compiled pattern takes, about.
const STATE_BYTES: u64 = 32;
/// The validator compares up to so many items with each other, and more by their hashes.
const PAIRWISE_MAX: u64 = 15;
/// The validator compares up to so many members of an object one after the other, and finds more by their hashes.
const SEARCHED_MAX: u64 = 16;
/// Bytes of names that one step compares with the name to find.
const NAME_BYTES_PER_STEP: u64 = 32;
/// Steps of one part of a value that has to be a schema itself.
const META_STEPS: u64 = 100;
/// Steps of counting the target of a reference for one more part of a value. Remembering the result takes some
/// hundred bytes: one check remembers 12 MiB at most.
const KNOWN_STEPS: u64 = 8;
/// Bytes of a reference that one step follows.
const REFERENCE_BYTES_PER_STEP: u64 = 16;

/// Why counting ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StepCountStop {
    /// References follow each other too far.
    Deep,
    /// A reference without a target.
    Reference(String),
    /// More steps than a check may take.
    Steps,
}

/// Counts the steps of checking `value`, `most` at most.
pub(super) fn count<J: Json>(
    schema: &Value,
    value: J::Node<'_>,
    most: u64,
) -> Result<u64, StepCountStop> {
    let mut counter = StepCounter {
        left: most,
        names: SchemaResolver::new(schema),
        known: HashMap::new(),
        plain_enums: HashMap::new(),
        patterns: HashMap::new(),
        depth: 0,
    };
    let steps = counter.within(
        schema,
        SchemaBaseUri::from_root(schema),
        &SchemaInstance::<J>::Value(value),
    )?;
    match steps.valid <= most {
        true => Ok(steps.valid),
        false => Err(StepCountStop::Steps),
    }
}

/// The parts of a value: values, names and pieces of text; `None` if there are more than `most`.
pub(super) fn parts<'v, J: Json>(value: &J::Node<'v>, most: u64) -> Option<u64> {
    let mut left = most;
    take_parts::<J>(value, &mut left)?;
    Some(most - left)
}

fn take_parts<'v, J: Json>(value: &J::Node<'v>, left: &mut u64) -> Option<()> {
    let text = match value.json_type() {
        JsonType::String => value.as_string().map_or(0, |text| pieces(&text)),
        _ => 0,
    };
    *left = left.checked_sub(1 + text)?;
    if let Some(items) = value.as_array() {
        return items
            .elements()
            .try_for_each(|item| take_parts::<J>(&item, left));
    }
    let Some(members) = value.as_object() else {
        return Some(());
    };
    members.members().try_for_each(|(name, member)| {
        *left = left.checked_sub(pieces(&name.into()))?;
        take_parts::<J>(&member, left)
    })
}

pub(super) fn text(bytes: usize) -> u64 {
    bytes as u64 / TEXT_BYTES_PER_STEP
}

/// Steps of reading a text. A text that was copied for that is written with escapes.
// The argument stays a `Cow`: whether it was copied is what counts here.
#[allow(clippy::ptr_arg)]
fn pieces(read: &Cow<'_, str>) -> u64 {
    match read {
        Cow::Borrowed(plain) => text(plain.len()),
        Cow::Owned(escaped) => text(escaped.len()).saturating_mul(ESCAPED_STEPS),
    }
}

/// Steps of finding a member by its name.
fn lookup(name: &str, members: usize) -> u64 {
    let compared = match members as u64 {
        few if few <= SEARCHED_MAX => few,
        _ => 1,
    };
    1 + (name.len() as u64).saturating_mul(compared) / NAME_BYTES_PER_STEP
}

fn lookups<'s>(names: impl Iterator<Item = &'s String>, members: usize) -> u64 {
    names.map(|name| lookup(name, members)).sum()
}

fn strings(names: &Value) -> impl Iterator<Item = &String> {
    let names = names.as_array().into_iter().flatten();
    names.filter_map(|name| match name {
        Value::String(name) => Some(name),
        _ => None,
    })
}

/// The instance that a schema is applied to.
enum SchemaInstance<'v, J: Json> {
    /// The name of a member, and its location; `None` where its object has no identity.
    Name(Cow<'v, str>, Option<InstanceLocation>),
    Value(J::Node<'v>),
}

/// Tells parts of one value apart. The object and the number there identify a name: if its characters did that, each
/// reference would keep a copy of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum InstanceLocation {
    Name(NodeIdentity, u32),
    Value(NodeIdentity),
}

impl<'v, J: Json> SchemaInstance<'v, J> {
    fn location(&self) -> Option<InstanceLocation> {
        match self {
            Self::Name(_, location) => *location,
            Self::Value(_) => self.identity().map(InstanceLocation::Value),
        }
    }

    fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Name(name, _) => Some(Cow::Borrowed(name)),
            Self::Value(value) => value.as_string(),
        }
    }

    /// The identity of a value.
    fn identity(&self) -> Option<NodeIdentity> {
        match self {
            Self::Name(..) => None,
            Self::Value(value) => value.identity(),
        }
    }

    fn is_container(&self) -> bool {
        match self {
            Self::Name(..) => false,
            Self::Value(value) => matches!(value.json_type(), JsonType::Array | JsonType::Object),
        }
    }
}

/// Steps of one schema at one part of a value.
#[derive(Clone, Copy, Default)]
struct SchemaSteps {
    /// Steps of deciding whether the part matches.
    valid: u64,
    /// Steps of finding which members or items it has evaluated, for an `unevaluated…` around it: the validator
    /// checks every branch once more for that.
    mark: u64,
}

impl SchemaSteps {
    fn add(&mut self, steps: u64) {
        self.valid = self.valid.saturating_add(steps);
    }

    /// Adds the steps of a schema for the same part.
    fn same(&mut self, also: Self) {
        self.add(also.valid);
        let mark = also.valid.saturating_add(also.mark);
        self.mark = self.mark.saturating_add(mark);
    }

    /// Adds the steps of a schema for an inner part, which `unevaluated…` evaluates again.
    fn left_over(&mut self, part: Self) {
        self.add(part.valid);
        self.mark = self.mark.saturating_add(part.valid);
    }
}

struct StepCounter<'s> {
    /// The remaining steps of counting itself.
    left: u64,
    names: SchemaResolver<'s>,
    /// Results by the address of a reference's target and of the part.
    known: HashMap<(usize, InstanceLocation), SchemaSteps>,
    /// Whether an `enum` has texts only, by its address.
    plain_enums: HashMap<usize, bool>,
    /// Steps of a pattern for each byte, by its address.
    patterns: HashMap<usize, u64>,
    depth: usize,
}

impl<'s> StepCounter<'s> {
    fn spend(&mut self, steps: u64) -> Result<(), StepCountStop> {
        self.left = self.left.checked_sub(steps).ok_or(StepCountStop::Steps)?;
        Ok(())
    }

    /// Adds work that counting does as the check does it.
    fn both(&mut self, steps: &mut SchemaSteps, work: u64) -> Result<(), StepCountStop> {
        steps.same(SchemaSteps {
            valid: work,
            mark: 0,
        });
        self.spend(work)
    }

    /// The text that a keyword is applied to, which the validator decodes each time.
    fn text<'a, J: Json>(
        &mut self,
        at: &'a SchemaInstance<'_, J>,
    ) -> Result<Option<Cow<'a, str>>, StepCountStop> {
        let text = at.text();
        self.spend(text.as_ref().map_or(0, pieces))?;
        Ok(text)
    }

    fn within<J: Json>(
        &mut self,
        schema: &'s Value,
        base: SchemaBaseUri<'s>,
        at: &SchemaInstance<'_, J>,
    ) -> Result<SchemaSteps, StepCountStop> {
        self.spend(1)?;
        let Value::Object(words) = schema else {
            return Ok(SchemaSteps { valid: 1, mark: 1 });
        };
        // Each level takes stack, here and in the validator.
        if self.depth >= SCHEMA_DEPTH_MAX {
            return Err(StepCountStop::Deep);
        }
        self.depth += 1;
        let base = base.at(schema, words);
        let size = 1 + words.len() as u64;
        let mut steps = SchemaSteps {
            valid: size,
            mark: size,
        };
        for (word, value) in words {
            self.word(&mut steps, words, (word, value), base, at)?;
        }
        let looks = |word: &str| words.contains_key(word);
        // These keywords make the validator go through the schema once more, to mark what it has evaluated.
        if looks("unevaluatedProperties") || looks("unevaluatedItems") {
            steps.add(steps.mark);
        }
        self.depth -= 1;
        Ok(steps)
    }

    fn word<J: Json>(
        &mut self,
        steps: &mut SchemaSteps,
        words: &'s Map<String, Value>,
        (word, value): (&str, &'s Value),
        base: SchemaBaseUri<'s>,
        at: &SchemaInstance<'_, J>,
    ) -> Result<(), StepCountStop> {
        match (word, value) {
            ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(to)) => {
                self.reference(steps, word, to, base, at)
            }
            ("allOf" | "anyOf" | "oneOf", Value::Array(all)) => all.iter().try_for_each(|one| {
                steps.same(self.within(one, base, at)?);
                Ok(())
            }),
            // Every branch counts: which one the validator takes is not known here.
            ("else" | "if" | "not" | "then", _) => {
                steps.same(self.within(value, base, at)?);
                Ok(())
            }
            ("enum", Value::Array(options)) => self.compare(steps, options, at),
            ("const", _) => self.compare(steps, std::slice::from_ref(value), at),
            ("pattern", Value::String(pattern)) => {
                if let Some(text) = self.text(at)? {
                    steps.add(self.matching(pattern, &text)?);
                }
                Ok(())
            }
            // Some drafts check both.
            ("contentEncoding" | "contentMediaType", _) => {
                let bytes = self.text(at)?.map_or(0, |text| text.len());
                steps.add(text(bytes).saturating_mul(DECODING_STEPS));
                Ok(())
            }
            ("maxLength" | "minLength", _) => {
                steps.add(self.text(at)?.map_or(0, |text| pieces(&text)));
                Ok(())
            }
            _ => {
                let SchemaInstance::Value(node) = at else {
                    return Ok(());
                };
                if let Some(items) = node.as_array() {
                    self.items::<J>(steps, (word, value), base, &items)
                } else if let Some(members) = node.as_object() {
                    self.members(steps, words, (word, value), base, at, &members)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn items<'v, J: Json>(
        &mut self,
        steps: &mut SchemaSteps,
        (word, value): (&str, &'s Value),
        base: SchemaBaseUri<'s>,
        items: &<J::Node<'v> as Node<'v, J>>::Array,
    ) -> Result<(), StepCountStop> {
        match (word, value) {
            ("items" | "prefixItems", Value::Array(schemas)) => {
                for (schema, item) in schemas.iter().zip(items.elements()) {
                    steps.add(
                        self.within(schema, base, &SchemaInstance::<J>::Value(item))?
                            .valid,
                    );
                }
            }
            ("additionalItems" | "contains" | "items", each) => {
                for item in items.elements() {
                    steps.add(
                        self.within(each, base, &SchemaInstance::<J>::Value(item))?
                            .valid,
                    );
                }
                // `contains` reports which items it has evaluated.
                steps.mark = steps.mark.saturating_add(match word {
                    "contains" => steps.valid,
                    _ => items.len() as u64,
                });
            }
            ("unevaluatedItems", each) => {
                for item in items.elements() {
                    steps.left_over(self.within(each, base, &SchemaInstance::<J>::Value(item))?);
                }
            }
            ("uniqueItems", Value::Bool(true)) => {
                let mut all = 0;
                for item in items.elements() {
                    all += self.parts::<J>(&item)?;
                }
                // The validator compares few items pairwise, and puts many into a hash set.
                let pairwise = items.len() as u64 <= PAIRWISE_MAX;
                steps.add(all.saturating_mul(if pairwise { PAIRWISE_MAX } else { 2 }));
            }
            _ => {}
        }
        Ok(())
    }

    fn members<'v, J: Json>(
        &mut self,
        steps: &mut SchemaSteps,
        words: &'s Map<String, Value>,
        (word, value): (&str, &'s Value),
        base: SchemaBaseUri<'s>,
        at: &SchemaInstance<'v, J>,
        members: &<J::Node<'v> as Node<'v, J>>::Object,
    ) -> Result<(), StepCountStop> {
        let own = words.get("properties").and_then(Value::as_object);
        match (word, value) {
            ("properties", Value::Object(own)) => {
                self.both(steps, lookups(own.keys(), members.len()))?;
                for (name, member) in members.members() {
                    let name = self.decoded(steps, name)?;
                    if let Some(schema) = own.get(&*name) {
                        steps.add(
                            self.within(schema, base, &SchemaInstance::<J>::Value(member))?
                                .valid,
                        );
                    }
                }
            }
            ("additionalProperties", each) => {
                for (name, member) in members.members() {
                    let name = self.decoded(steps, name)?;
                    if own.is_none_or(|own| !own.contains_key(&*name)) {
                        steps.add(
                            self.within(each, base, &SchemaInstance::<J>::Value(member))?
                                .valid,
                        );
                    }
                }
            }
            ("patternProperties", Value::Object(patterns)) => {
                for (name, member) in members.members() {
                    let name = self.decoded(steps, name)?;
                    let member = SchemaInstance::<J>::Value(member);
                    for (pattern, schema) in patterns {
                        let matching = self.matching(pattern, &name)?;
                        steps.add(matching);
                        steps.mark = steps.mark.saturating_add(matching);
                        steps.add(self.within(schema, base, &member)?.valid);
                    }
                }
            }
            ("propertyNames", each) => {
                let object = at.identity();
                for ((name, _), number) in members.members().zip(0..) {
                    let name = self.decoded(steps, name)?;
                    let location = object.map(|object| InstanceLocation::Name(object, number));
                    let name = SchemaInstance::<J>::Name(name, location);
                    steps.add(self.within(each, base, &name)?.valid);
                }
            }
            ("unevaluatedProperties", each) => {
                for (name, member) in members.members() {
                    self.decoded(steps, name)?;
                    steps.left_over(self.within(
                        each,
                        base,
                        &SchemaInstance::<J>::Value(member),
                    )?);
                }
            }
            ("dependencies" | "dependentSchemas", Value::Object(all)) => {
                for (name, schema) in all {
                    self.both(steps, lookup(name, members.len()))?;
                    match schema {
                        Value::Array(_) => {
                            self.both(steps, lookups(strings(schema), members.len()))?;
                        }
                        _ if members.get(&J::prepare_key(name)).is_none() => {}
                        _ => steps.same(self.within(schema, base, at)?),
                    }
                }
            }
            ("dependentRequired", Value::Object(all)) => {
                self.both(steps, lookups(all.keys(), members.len()))?;
                for names in all.values() {
                    self.both(steps, lookups(strings(names), members.len()))?;
                }
            }
            ("required", names) => {
                self.both(steps, lookups(strings(names), members.len()))?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The name of a member. The validator decodes it whenever it goes through its object.
    fn decoded<'n>(
        &mut self,
        steps: &mut SchemaSteps,
        name: impl Into<Cow<'n, str>>,
    ) -> Result<Cow<'n, str>, StepCountStop> {
        let name = name.into();
        self.both(steps, 1 + pieces(&name))?;
        Ok(name)
    }

    /// The validator compares values until one is equal. It finds texts by their hash.
    fn compare<J: Json>(
        &mut self,
        steps: &mut SchemaSteps,
        options: &'s [Value],
        at: &SchemaInstance<'_, J>,
    ) -> Result<(), StepCountStop> {
        if at.is_container() {
            self.spend(options.len() as u64)?;
            for option in options {
                if matches!(option, Value::Array(_) | Value::Object(_)) {
                    let parts = self.parts::<SerdeJson>(&option)?;
                    steps.add(parts.saturating_mul(SEARCHED_MAX));
                } else {
                    steps.add(1);
                }
            }
            return Ok(());
        }
        let text = 1 + self.text(at)?.map_or(0, |text| pieces(&text));
        let address = options.as_ptr() as usize;
        // The same `enum` applies to each item of a list, and is examined once.
        let plain = self.plain_enums.get(&address).copied();
        let plain = plain.unwrap_or_else(|| options.iter().all(Value::is_string));
        self.plain_enums.insert(address, plain);
        let compared = if plain {
            PAIRWISE_MAX.min(options.len() as u64)
        } else {
            options.len() as u64
        };
        steps.add(compared.saturating_mul(text));
        Ok(())
    }

    /// The parts of `value`, counting their steps.
    fn parts<'v, J: Json>(&mut self, value: &J::Node<'v>) -> Result<u64, StepCountStop> {
        let parts = parts::<J>(value, self.left).ok_or(StepCountStop::Steps)?;
        self.spend(parts)?;
        Ok(parts)
    }

    fn reference<J: Json>(
        &mut self,
        steps: &mut SchemaSteps,
        word: &str,
        to: &str,
        base: SchemaBaseUri<'s>,
        at: &SchemaInstance<'_, J>,
    ) -> Result<(), StepCountStop> {
        self.spend(1 + to.len() as u64 / REFERENCE_BYTES_PER_STEP)?;
        let targets = match self.names.resolve(word, to, base) {
            Some(ResolvedReference::In(targets)) => targets,
            // The schemas of the drafts are known to be finite, and a flat rate bounds them.
            Some(ResolvedReference::Meta) => {
                let parts = match at {
                    SchemaInstance::Name(name, _) => 1 + text(name.len()),
                    SchemaInstance::Value(value) => self.parts::<J>(value)?,
                };
                steps.add(parts.saturating_mul(META_STEPS));
                return Ok(());
            }
            // Cut: the text is a peer's.
            None => return Err(StepCountStop::Reference(to.chars().take(160).collect())),
        };
        for target in targets {
            let address = std::ptr::from_ref(target.schema) as usize;
            let key = || Some((address, at.location()?));
            let known = key().and_then(|key| self.known.get(&key).copied());
            let known = match known {
                Some(known) => known,
                None => {
                    self.spend(KNOWN_STEPS)?;
                    // A reference that leads back to itself is followed once.
                    self.known
                        .extend(key().map(|key| (key, SchemaSteps::default())));
                    let found = self.within(target.schema, target.base, at)?;
                    self.known.extend(key().map(|key| (key, found)));
                    found
                }
            };
            steps.same(known);
        }
        Ok(())
    }

    /// Steps of matching a pattern. The engine takes time by the length of the text and, at worst, by the states of
    /// the pattern, which counted repetitions multiply.
    fn matching(&mut self, pattern: &'s str, text: &str) -> Result<u64, StepCountStop> {
        let address = pattern.as_ptr() as usize;
        let each = match self.patterns.get(&address) {
            Some(each) => *each,
            None => {
                self.spend(self::text(pattern.len()))?;
                let each = each_byte(pattern);
                self.patterns.insert(address, each);
                each
            }
        };
        Ok(1 + (text.len() as u64).saturating_mul(each))
    }
}

fn each_byte(pattern: &str) -> u64 {
    let most = PATTERN_BYTES_MAX as u64 / STATE_BYTES;
    // Counted repetitions multiply the states of the compiled expression.
    let states = repetitions(pattern).saturating_mul(pattern.len() as u64);
    1 + states.min(most) / STATES_PER_STEP
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
