//! Reads a TOML document with the line of every value, and goes on after a mistake, so that one reading of the
//! messages is enough to repair the whole document.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::error::quote;
use super::values::ConfigDiagnostic;
use super::{
    CONFIG_BYTES_MAX, CONFIG_ERRORS_MAX, CONFIG_VERSION, ConfigError, NodeConfig, sections,
};

/// The values of a document, and all its mistakes. An invalid value leaves its default in `config`.
pub(super) struct ParsedConfig {
    pub(super) config: NodeConfig,
    pub(super) errors: Vec<ConfigError>,
}

pub(super) fn read(document: &[u8]) -> ParsedConfig {
    let refused = |error| ParsedConfig {
        config: NodeConfig::default(),
        errors: vec![error],
    };
    let text = match checked_text(document) {
        Ok(text) => text,
        Err(error) => return refused(error),
    };
    let mut notes = ConfigDiagnostics::new(text);
    let (table, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        notes.syntax(error);
    }
    if let Some((version, at)) = sections::newer(table.get_ref()) {
        let what = format!(
            "the document has version {version}, which is newer than this program; it knows \
             {CONFIG_VERSION}"
        );
        let fix = "update the node, or write the document for it (docs/configuration.md)";
        // This is the only message: a document of a newer version may break a rule of this one and none of its own.
        let mut notes = ConfigDiagnostics::new(text);
        notes.report("version", at, what, fix);
        // The keys of a newer document may mean something else. The node reads them all the same: leaving them out
        // would lock out its administrators.
        return ParsedConfig {
            config: sections::node_config(table.get_ref(), &mut ConfigDiagnostics::new(text)),
            errors: notes.finish(),
        };
    }
    // Half a document may say the opposite of the whole one, so the node takes nothing from it.
    let config = if syntax.is_empty() {
        sections::node_config(table.get_ref(), &mut notes)
    } else {
        NodeConfig::default()
    };
    ParsedConfig {
        config,
        errors: notes.finish(),
    }
}

fn checked_text(document: &[u8]) -> Result<&str, ConfigError> {
    let whole = |line, what: String, fix: &str| ConfigError {
        path: String::new(),
        line,
        what,
        fix: fix.to_owned(),
    };
    // The length is checked first, before the document costs the parser any work.
    if document.len() > CONFIG_BYTES_MAX {
        return Err(whole(
            None,
            format!("the document is longer than {CONFIG_BYTES_MAX} bytes"),
            "shorten it",
        ));
    }
    // Some editors write the byte order mark of UTF-8 (RFC 3629 section 6).
    let document = document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document);
    let text = std::str::from_utf8(document).map_err(|error| {
        whole(
            Some(line_of(document, error.valid_up_to())),
            "the document is not UTF-8 text".to_owned(),
            "save it as UTF-8",
        )
    })?;
    let first = text.lines().next().unwrap_or_default();
    // cloud-init takes the same medium, so that an administrator may have put its document there.
    if first.starts_with("#cloud-config") || first.starts_with("#!") {
        return Err(whole(
            Some(1),
            format!(
                "{} is for cloud-init, which does not run here",
                quote(first)
            ),
            "write the TOML document of docs/configuration.md instead",
        ));
    }
    Ok(text)
}

fn line_of(document: &[u8], offset: usize) -> usize {
    let before = &document[..offset.min(document.len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// Collects the mistakes of one document.
pub(super) struct ConfigDiagnostics<'a> {
    text: &'a str,
    errors: Vec<(usize, ConfigError)>,
    beyond: usize,
}

impl<'a> ConfigDiagnostics<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            errors: Vec::new(),
            beyond: 0,
        }
    }

    /// Records one mistake in the value at `at`.
    pub(super) fn report(
        &mut self,
        path: &str,
        at: Range<usize>,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        // The last row says how many more there are.
        if self.errors.len() >= CONFIG_ERRORS_MAX - 1 {
            self.beyond += 1;
            return;
        }
        let error = ConfigError {
            path: path.to_owned(),
            line: Some(line_of(self.text.as_bytes(), at.start)),
            what: what.into(),
            fix: fix.into(),
        };
        self.errors.push((at.start, error));
    }

    /// The number of mistakes so far, including those that are only counted.
    pub(super) fn count(&self) -> usize {
        self.errors.len() + self.beyond
    }

    fn syntax(&mut self, error: &toml::de::Error) {
        let what = error.message().lines().collect::<Vec<_>>().join(", ");
        let at = error.span().unwrap_or(0..0);
        self.report("", at, what, "correct the TOML syntax here");
    }

    fn finish(mut self) -> Vec<ConfigError> {
        // Sections are read in another order than that of the document.
        self.errors.sort_by_key(|(offset, _)| *offset);
        let mut errors: Vec<_> = self.errors.into_iter().map(|(_, error)| error).collect();
        if self.beyond > 0 {
            errors.push(ConfigError {
                path: String::new(),
                line: None,
                what: format!("{} more mistakes are not listed", self.beyond),
                fix: "correct these first".to_owned(),
            });
        }
        errors
    }
}

/// One value of the document with its key path.
#[derive(Clone)]
pub(super) struct ConfigValue<'t, 'i> {
    pub(super) path: String,
    value: &'t Spanned<DeValue<'i>>,
}

impl<'t, 'i> ConfigValue<'t, 'i> {
    pub(super) fn at(&self) -> Range<usize> {
        self.value.span()
    }

    pub(super) fn report(
        &self,
        notes: &mut ConfigDiagnostics<'_>,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        notes.report(&self.path, self.at(), what, fix);
    }

    pub(super) fn bool(&self, notes: &mut ConfigDiagnostics<'_>) -> Option<bool> {
        let found = self.value.get_ref().as_bool();
        self.expect(found, "true or false", notes)
    }

    pub(super) fn text(&self, notes: &mut ConfigDiagnostics<'_>) -> Option<&'t str> {
        let found = self.value.get_ref().as_str();
        self.expect(found, "a string in quotes", notes)
    }

    /// The text at `key` if this value is a table that has it. The reader of the table reports what is wrong with it.
    pub(super) fn text_of(&self, key: &str) -> Option<&'t str> {
        let table = self.value.get_ref().as_table()?;
        table.get(key)?.get_ref().as_str()
    }

    /// A string that `parse` accepts. Its diagnostic says what is wrong and what to do.
    pub(super) fn parsed<T>(
        &self,
        notes: &mut ConfigDiagnostics<'_>,
        parse: impl FnOnce(&str) -> Result<T, ConfigDiagnostic>,
    ) -> Option<T> {
        match parse(self.text(notes)?) {
            Ok(value) => Some(value),
            Err(ConfigDiagnostic { what, fix }) => {
                self.report(notes, what, fix);
                None
            }
        }
    }

    pub(super) fn port(&self, notes: &mut ConfigDiagnostics<'_>) -> Option<u16> {
        let found = self.value.get_ref().as_integer();
        let number = self.expect(found, "a whole number", notes)?;
        // TOML writes whole numbers in other bases as well.
        let port = i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .and_then(|number| u16::try_from(number).ok())
            .filter(|port| *port != 0);
        if port.is_none() {
            let what = format!("{} is no port", quote(number.as_str()));
            self.report(notes, what, "write a number from 1 to 65535");
        }
        port
    }

    /// A whole number in `range`.
    pub(super) fn number(
        &self,
        range: RangeInclusive<u32>,
        notes: &mut ConfigDiagnostics<'_>,
    ) -> Option<u32> {
        let found = self.value.get_ref().as_integer();
        let number = self.expect(found, "a whole number", notes)?;
        let value = i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| range.contains(number));
        if value.is_none() {
            let what = format!("{} is out of range", quote(number.as_str()));
            let (least, most) = range.into_inner();
            self.report(
                notes,
                what,
                format!("write a number from {least} to {most}"),
            );
        }
        value
    }

    /// The values of a table with free keys, each with its key.
    pub(super) fn entries(&self, notes: &mut ConfigDiagnostics<'_>) -> Vec<(&'t str, Self)> {
        let Some(section) = self.section(notes) else {
            return Vec::new();
        };
        let entry = |(key, value): (&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>)| {
            let key: &'t str = key.get_ref();
            let path = section.path_of(key);
            (key, Self { path, value })
        };
        section.table.iter().map(entry).collect()
    }

    /// The elements of an array.
    pub(super) fn list(&self, notes: &mut ConfigDiagnostics<'_>) -> Vec<Self> {
        let found: Option<&DeArray<'_>> = self.value.get_ref().as_array();
        let Some(array) = self.expect(found, "a list in square brackets", notes) else {
            return Vec::new();
        };
        let element = |(n, value)| Self {
            path: format!("{}[{n}]", self.path),
            value,
        };
        array.iter().enumerate().map(element).collect()
    }

    /// A table whose keys the caller reads one by one.
    pub(super) fn section(&self, notes: &mut ConfigDiagnostics<'_>) -> Option<ConfigTable<'t, 'i>> {
        let table = self.value.get_ref().as_table();
        let table = self.expect(table, "a table", notes)?;
        Some(ConfigTable::new(&self.path, self.at(), table))
    }

    fn expect<T>(
        &self,
        found: Option<T>,
        kind: &str,
        notes: &mut ConfigDiagnostics<'_>,
    ) -> Option<T> {
        if found.is_none() {
            let what = format!("expected {kind}, found {}", self.value.get_ref().type_str());
            self.report(notes, what, format!("write {kind}"));
        }
        found
    }
}

/// One table of the document. The reader takes each key once; [`ConfigTable::finish`] refuses the others.
pub(super) struct ConfigTable<'t, 'i> {
    path: String,
    at: Range<usize>,
    table: &'t DeTable<'i>,
    known_keys: Vec<&'static str>,
    /// Names of keys in earlier versions of the program. The reader takes them, and no message proposes them.
    former_keys: Vec<&'static str>,
}

/// Least similarity (Jaro-Winkler) at which a message suggests a known key for an unknown one.
const SIMILAR_MIN: f64 = 0.75;

impl<'t, 'i> ConfigTable<'t, 'i> {
    pub(super) fn new(path: &str, at: Range<usize>, table: &'t DeTable<'i>) -> Self {
        Self {
            path: path.to_owned(),
            at,
            table,
            known_keys: Vec::new(),
            former_keys: Vec::new(),
        }
    }

    pub(super) fn key(&mut self, key: &'static str) -> Option<ConfigValue<'t, 'i>> {
        self.known_keys.push(key);
        self.value_of(key)
    }

    /// A key that earlier versions of the program called `former`. A node reads the document that it stored before
    /// its update. The same key under both names is a mistake, because the two values may differ.
    pub(super) fn renamed(
        &mut self,
        key: &'static str,
        former: &'static str,
        notes: &mut ConfigDiagnostics<'_>,
    ) -> Option<ConfigValue<'t, 'i>> {
        self.former_keys.push(former);
        let (value, earlier) = (self.key(key), self.value_of(former));
        if let (Some(_), Some(earlier)) = (&value, &earlier) {
            let what = format!("this is the former name of '{key}', which the table has too");
            earlier.report(notes, what, format!("leave out {}", earlier.path));
        }
        value.or(earlier)
    }

    fn value_of(&self, key: &str) -> Option<ConfigValue<'t, 'i>> {
        self.table.get(key).map(|value| ConfigValue {
            path: self.path_of(key),
            value,
        })
    }

    /// A key that the table must have.
    pub(super) fn required(
        &mut self,
        key: &'static str,
        example: &str,
        notes: &mut ConfigDiagnostics<'_>,
    ) -> Option<ConfigValue<'t, 'i>> {
        let value = self.key(key);
        if value.is_none() {
            let path = self.path_of(key);
            notes.report(
                &path,
                self.at.clone(),
                "this key is missing",
                format!("add {key} = {example}"),
            );
        }
        value
    }

    /// The elements of an array; empty where the key is absent.
    pub(super) fn list(
        &mut self,
        key: &'static str,
        notes: &mut ConfigDiagnostics<'_>,
    ) -> Vec<ConfigValue<'t, 'i>> {
        self.key(key)
            .map(|value| value.list(notes))
            .unwrap_or_default()
    }

    /// Refuses every key that the reader did not take.
    pub(super) fn finish(self, notes: &mut ConfigDiagnostics<'_>) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if !self.known_keys.contains(&name) && !self.former_keys.contains(&name) {
                let what = format!("unknown key {}", quote(name));
                notes.report(&self.path_of(name), key.span(), what, self.advice(name));
            }
        }
    }

    fn advice(&self, name: &str) -> String {
        // `Admin-Keys` probably means `admin_keys`.
        let lower = name.to_lowercase().replace('-', "_");
        let likeness = |known: &str| strsim::jaro_winkler(known, &lower);
        let nearest = self
            .known_keys
            .iter()
            .map(|known| (likeness(known), *known))
            .filter(|(likeness, _)| *likeness >= SIMILAR_MIN)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match nearest {
            Some((_, known)) => format!("did you mean '{known}'?"),
            None => format!("known here: {}", self.known_keys.join(", ")),
        }
    }

    fn path_of(&self, key: &str) -> String {
        // The key is any text of the document: it must not fill the message, nor send control characters to a
        // console.
        let key = if key.chars().count() > 64 || key.contains(char::is_control) {
            quote(key)
        } else {
            key.to_owned()
        };
        if self.path.is_empty() {
            key
        } else {
            format!("{}.{key}", self.path)
        }
    }
}
