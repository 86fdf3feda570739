//! The targets of references within a schema.
//!
//! Where the target depends on the draft, or on the way to the reference, the resolver returns every possible one:
//! the count is then higher than the steps taken, and never lower.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Schemas of schemas, which the library includes.
const META: [&str; 2] = ["http://json-schema.org/", "https://json-schema.org/"];

/// The resource that pointers within a schema begin at: by its `$id`, and by its `id` as well, which is an identifier
/// in older drafts only.
#[derive(Clone, Copy)]
pub(super) struct SchemaBaseUri<'s> {
    now: &'s Value,
    once: &'s Value,
}

impl<'s> SchemaBaseUri<'s> {
    pub(super) const fn from_root(root: &'s Value) -> Self {
        Self {
            now: root,
            once: root,
        }
    }

    /// The base of the parts of `schema`, too.
    pub(super) fn at(self, schema: &'s Value, words: &Map<String, Value>) -> Self {
        let begins = |word| identifier(words, word).is_some();
        Self {
            now: if begins("$id") { schema } else { self.now },
            once: if begins("$id") || begins("id") {
                schema
            } else {
                self.once
            },
        }
    }

    /// Tells bases of one schema apart.
    pub(super) fn identity(self) -> (usize, usize) {
        let address = |schema: &'s Value| std::ptr::from_ref(schema) as usize;
        (address(self.now), address(self.once))
    }

    fn targets(self) -> Vec<SchemaTarget<'s>> {
        let target = |schema: &'s Value| SchemaTarget {
            schema,
            base: Self::from_root(schema),
        };
        match std::ptr::eq(self.now, self.once) {
            true => vec![target(self.now)],
            false => vec![target(self.now), target(self.once)],
        }
    }
}

/// A schema, and the base of pointers in it.
#[derive(Clone, Copy)]
pub(super) struct SchemaTarget<'s> {
    pub(super) schema: &'s Value,
    pub(super) base: SchemaBaseUri<'s>,
}

/// The target of a reference.
pub(super) enum ResolvedReference<'s> {
    In(Vec<SchemaTarget<'s>>),
    /// A schema of schemas.
    Meta,
}

/// Targets by anchor or identifier; every resource by the end of its identifier and by the empty name as well.
type ByName<'s> = HashMap<&'s str, Vec<SchemaTarget<'s>>>;

/// A schema whose references a count follows.
pub(super) struct SchemaResolver<'s> {
    root: &'s Value,
    /// Collected when first needed.
    known: Option<ByName<'s>>,
}

impl<'s> SchemaResolver<'s> {
    pub(super) const fn new(root: &'s Value) -> Self {
        Self { root, known: None }
    }

    /// The targets of `to` as the value of the keyword `word`; `None` where it leads nowhere.
    pub(super) fn resolve(
        &mut self,
        word: &str,
        to: &str,
        base: SchemaBaseUri<'s>,
    ) -> Option<ResolvedReference<'s>> {
        let is_meta = META.iter().any(|meta| to.starts_with(meta));
        // A schema may define a resource under the address of a schema of schemas.
        if is_meta && !self.known().contains_key(address(to)) {
            return Some(ResolvedReference::Meta);
        }
        if word == "$recursiveRef" {
            // The validator takes the outermost schema with the keyword: each may be that one.
            let mut all = self.known().get("").cloned().unwrap_or_default();
            all.extend(SchemaBaseUri::from_root(self.root).targets());
            return Some(ResolvedReference::In(all));
        }
        self.targets(to, base).map(ResolvedReference::In)
    }

    fn targets(&mut self, to: &str, base: SchemaBaseUri<'s>) -> Option<Vec<SchemaTarget<'s>>> {
        let (resource, fragment) = to.split_once('#').unwrap_or((to, ""));
        let resources = match resource {
            "" => base.targets(),
            name => self.resources(name)?,
        };
        match fragment {
            "" => Some(resources),
            pointer if pointer.starts_with('/') => {
                let found = resources.into_iter();
                let found: Vec<_> = found.filter_map(|from| follow(from, pointer)).collect();
                (!found.is_empty()).then_some(found)
            }
            anchor => self.known().get(anchor).cloned(),
        }
    }

    /// The resources that a name may mean. The name may be relative to another one.
    fn resources(&mut self, name: &str) -> Option<Vec<SchemaTarget<'s>>> {
        let known = self.known();
        known.get(name).or_else(|| known.get(last(name))).cloned()
    }

    fn known(&mut self) -> &ByName<'s> {
        let root = self.root;
        self.known.get_or_insert_with(|| {
            let mut names = HashMap::new();
            collect(root, SchemaBaseUri::from_root(root), &mut names);
            names
        })
    }
}

/// The rest of a name that is relative to another.
fn last(name: &str) -> &str {
    name.rfind('/').map_or(name, |at| &name[at + 1..])
}

/// A name without its fragment.
fn address(to: &str) -> &str {
    to.split('#').next().unwrap_or_default()
}

/// The identifier at which a schema begins a resource of its own.
pub(super) fn identifier<'s>(words: &'s Map<String, Value>, word: &str) -> Option<&'s str> {
    let id = words.get(word)?.as_str()?;
    // In drafts 6 and 7 a fragment alone is an anchor, at which no resource begins.
    (!id.starts_with('#')).then(|| address(id))
}

/// Collects anchors and identifiers; every resource by the empty name as well.
fn collect<'s>(value: &'s Value, base: SchemaBaseUri<'s>, names: &mut ByName<'s>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, base, names)),
        Value::Object(words) => {
            let base = base.at(value, words);
            let target = SchemaTarget {
                schema: value,
                base,
            };
            let ids = ["$id", "id"].map(|word| identifier(words, word));
            for id in ids.into_iter().flatten() {
                names.entry(id).or_default().push(target);
                names.entry("").or_default().push(target);
                if last(id) != id {
                    names.entry(last(id)).or_default().push(target);
                }
            }
            for word in ["$anchor", "$dynamicAnchor", "$id", "id"] {
                let name = words.get(word).and_then(Value::as_str);
                let name = name.and_then(|name| match word {
                    "$id" | "id" => name.strip_prefix('#'),
                    _ => Some(name),
                });
                if let Some(name) = name.filter(|name| !name.is_empty()) {
                    names.entry(name).or_default().push(target);
                }
            }
            words.values().for_each(|word| collect(word, base, names));
        }
        _ => {}
    }
}

/// Follows a JSON Pointer in the form of a URI's fragment.
fn follow<'s>(from: SchemaTarget<'s>, pointer: &str) -> Option<SchemaTarget<'s>> {
    let mut found = from;
    for step in pointer.split('/').skip(1) {
        let step = unescaped(step)?;
        let schema = match found.schema {
            Value::Object(words) => words.get(&step)?,
            Value::Array(items) => items.get(step.parse::<usize>().ok()?)?,
            _ => return None,
        };
        let base = schema.as_object().map(|words| found.base.at(schema, words));
        found = SchemaTarget {
            schema,
            base: base.unwrap_or(found.base),
        };
    }
    Some(found)
}

fn unescaped(step: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(step.len());
    let mut rest = step.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match byte {
            // A pointer in a fragment is percent-encoded: RFC 6901, section 6.
            b'%' => {
                let code = std::str::from_utf8(rest.get(..2)?).ok()?;
                rest = &rest[2..];
                u8::from_str_radix(code, 16).ok()?
            }
            byte => byte,
        });
    }
    let step = String::from_utf8(bytes).ok()?;
    // In this order: RFC 6901, section 4.
    Some(step.replace("~1", "/").replace("~0", "~"))
}
