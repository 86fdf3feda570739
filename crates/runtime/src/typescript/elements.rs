//! Converts elements (`<a b={c}>d</a>`) to calls of `h`.

use oxc_ast::ast::*;
use oxc_ast_visit::Visit;
use oxc_span::{GetSpan, Span};

use super::erase::Eraser;

impl Eraser<'_> {
    pub(super) fn element(&mut self, it: &JSXElement<'_>) {
        let opening = &it.opening_element;
        let name = self.name(&opening.name);
        let (start, named) = (it.span.start as usize, opening.name.span().end as usize);
        let attributes = &opening.attributes;
        let begin = if attributes.is_empty() { "null" } else { "{" };
        self.edits
            .replace(start, named, &format!("h({name}, {begin}"));
        let mut at = named;
        for attribute in attributes {
            self.edits.erase(at, attribute.span().start as usize);
            self.attribute(attribute);
            at = attribute.span().end as usize;
        }
        let end = if attributes.is_empty() { "" } else { "}" };
        self.edits.replace(at, opening.span.end as usize, end);
        for child in &it.children {
            self.child(child);
        }
        match &it.closing_element {
            Some(closing) => {
                self.edits
                    .replace(closing.span.start as usize, closing.span.end as usize, ")")
            }
            // An element that closes itself has no end tag to replace.
            None => self.edits.insert(it.span.end as usize, ")"),
        }
    }

    pub(super) fn fragment(&mut self, it: &JSXFragment<'_>) {
        let (opening, closing) = (it.opening_fragment.span, it.closing_fragment.span);
        self.edits.replace(
            opening.start as usize,
            opening.end as usize,
            "h(Fragment, null",
        );
        for child in &it.children {
            self.child(child);
        }
        self.edits
            .replace(closing.start as usize, closing.end as usize, ")");
    }

    fn name(&self, name: &JSXElementName<'_>) -> String {
        let span = name.span();
        let text = self.edits.slice(span.start as usize, span.end as usize);
        match name {
            // A name that begins in lower case is a string instead of a variable of the script.
            JSXElementName::Identifier(_) | JSXElementName::NamespacedName(_) => quoted(text),
            _ => text.to_owned(),
        }
    }

    fn attribute(&mut self, item: &JSXAttributeItem<'_>) {
        match item {
            JSXAttributeItem::SpreadAttribute(it) => {
                self.between(it.span, &it.argument, "...(", "), ")
            }
            JSXAttributeItem::Attribute(it) => {
                let name = it.name.span();
                let text = self.edits.slice(name.start as usize, name.end as usize);
                let key = quoted(text);
                let end = it.span.end as usize;
                match &it.value {
                    // An attribute without a value is `true`.
                    None => self
                        .edits
                        .replace(name.start as usize, end, &format!("{key}: true, ")),
                    Some(JSXAttributeValue::StringLiteral(value)) => {
                        // The span includes the quotation marks.
                        let (start, end) =
                            (value.span.start as usize + 1, value.span.end as usize - 1);
                        let text = quoted(&decoded(self.edits.slice(start, end)));
                        self.edits.replace(
                            name.start as usize,
                            it.span.end as usize,
                            &format!("{key}: {text}, "),
                        );
                    }
                    Some(value) => {
                        let from = value.span().start as usize;
                        self.edits
                            .replace(name.start as usize, from, &format!("{key}: "));
                        self.value(value);
                        self.edits.insert(end, ", ");
                    }
                }
            }
        }
    }

    fn value(&mut self, value: &JSXAttributeValue<'_>) {
        match value {
            JSXAttributeValue::Element(it) => self.element(it),
            JSXAttributeValue::Fragment(it) => self.fragment(it),
            JSXAttributeValue::ExpressionContainer(it) => match it.expression.as_expression() {
                // With the parentheses, a sequence of expressions stays one value.
                Some(expression) => self.between(it.span, expression, "(", ")"),
                None => {
                    self.edits
                        .replace(it.span.start as usize, it.span.end as usize, "undefined")
                }
            },
            // `attribute` converts strings itself.
            JSXAttributeValue::StringLiteral(_) => {}
        }
    }

    fn child(&mut self, child: &JSXChild<'_>) {
        match child {
            JSXChild::Text(it) => {
                let (start, end) = (it.span.start as usize, it.span.end as usize);
                let text = trimmed(self.edits.slice(start, end));
                let text = if text.is_empty() {
                    text
                } else {
                    format!(", {}", quoted(&decoded(&text)))
                };
                self.edits.replace(start, end, &text);
            }
            JSXChild::Element(it) => {
                self.edits.insert(it.span.start as usize, ", ");
                self.element(it);
            }
            JSXChild::Fragment(it) => {
                self.edits.insert(it.span.start as usize, ", ");
                self.fragment(it);
            }
            JSXChild::ExpressionContainer(it) => match it.expression.as_expression() {
                Some(expression) => self.between(it.span, expression, ", (", ")"),
                None => self
                    .edits
                    .erase(it.span.start as usize, it.span.end as usize),
            },
            JSXChild::Spread(it) => self.between(it.span, &it.expression, ", ...(", ")"),
        }
    }

    /// Replaces the braces around an expression.
    fn between(&mut self, whole: Span, inner: &Expression<'_>, before: &str, after: &str) {
        let span = inner.span();
        self.edits
            .replace(whole.start as usize, span.start as usize, before);
        self.visit_expression(inner);
        self.edits
            .replace(span.end as usize, whole.end as usize, after);
    }
}

/// The text of the lines, without blanks at line breaks, joined by one blank.
fn trimmed(text: &str) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    // `split` returns at least one line, so this subtraction cannot underflow.
    let last = lines.len() - 1;
    let blank = |c: char| matches!(c, ' ' | '\t' | '\r');
    let cut = lines.iter().enumerate().map(|(index, line)| {
        let line = if index == 0 {
            line
        } else {
            line.trim_start_matches(blank)
        };
        if index == last {
            line
        } else {
            line.trim_end_matches(blank)
        }
    });
    cut.filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A literal of JavaScript, on one line.
fn quoted(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    // JSON allows these two characters in a string, but JavaScript counts them as ends of lines.
    json.replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// Decodes the few entities that people write; others stay unchanged.
fn decoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let entity = rest
            .find(';')
            .filter(|end| *end <= 10)
            .map(|end| &rest[1..end]);
        let char = entity.and_then(|entity| match entity {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            "nbsp" => Some('\u{a0}'),
            other => {
                let number = other.strip_prefix('#')?;
                let code = match number.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => number.parse().ok()?,
                };
                char::from_u32(code)
            }
        });
        match (char, entity) {
            (Some(char), Some(entity)) => {
                out.push(char);
                rest = &rest[entity.len() + 2..];
            }
            _ => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}
