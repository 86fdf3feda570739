//! The grammar of RFC 4918 §10.4.2.

use http::HeaderMap;

use crate::dav::error::DavError;
use crate::dav::limits::{HEADER_BYTES_MAX, IF_CONDITIONS_MAX};

use super::{EntityTag, IfCondition, IfHeader, IfList, IfState};
use crate::dav::headers::single;

const FIELD: &str = "if";

/// What is left of the field.
struct IfParser<'a> {
    rest: &'a str,
    conditions: usize,
}

impl IfHeader {
    /// The field of a request.
    ///
    /// # Errors
    /// The field does not follow the grammar, or is above a limit. It must not be ignored: a write would then have no
    /// condition.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, DavError> {
        single(headers, FIELD)?.map(Self::parse).transpose()
    }

    /// Parses the value of the field.
    ///
    /// # Errors
    /// As for [`from_headers`](Self::from_headers).
    pub fn parse(text: &str) -> Result<Self, DavError> {
        if text.len() > HEADER_BYTES_MAX {
            return Err(DavError::header(FIELD, "it is too long"));
        }
        let mut parser = IfParser {
            rest: text,
            conditions: 0,
        };
        let mut lists: Vec<IfList> = Vec::new();
        let mut resource = None;
        // A resource is followed by a list at least.
        let mut is_list_due = true;
        loop {
            parser.skip_space();
            if parser.rest.starts_with('(') {
                let conditions = parser.list()?;
                lists.push(IfList {
                    resource: resource.clone(),
                    conditions,
                });
                is_list_due = false;
            } else if parser.rest.starts_with('<') {
                let is_first = lists.is_empty() && resource.is_none();
                let is_tagged = resource.is_some() && !is_list_due;
                // `No-tag-list` and `Tagged-list` do not occur together.
                if !is_first && !is_tagged {
                    return Err(invalid("a resource where a list is due"));
                }
                resource = Some(parser.bracketed()?.to_owned());
                is_list_due = true;
            } else if parser.rest.is_empty() && !is_list_due {
                return Ok(Self { lists });
            } else {
                return Err(invalid("no list of conditions"));
            }
        }
    }
}

impl<'a> IfParser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    /// `List`: conditions in parentheses.
    fn list(&mut self) -> Result<Vec<IfCondition>, DavError> {
        self.expect('(')?;
        let mut conditions = Vec::new();
        loop {
            self.skip_space();
            if self.rest.starts_with(')') && !conditions.is_empty() {
                self.expect(')')?;
                return Ok(conditions);
            }
            self.conditions += 1;
            if self.conditions > IF_CONDITIONS_MAX {
                return Err(invalid("too many conditions"));
            }
            conditions.push(self.condition()?);
        }
    }

    /// `Condition`: a token or a version, perhaps negated.
    fn condition(&mut self) -> Result<IfCondition, DavError> {
        // Words of a grammar have no case (RFC 5234 §2.3).
        let word = self.rest.get(..3);
        let is_negated = word.is_some_and(|it| it.eq_ignore_ascii_case("not"));
        if is_negated {
            self.rest = &self.rest[3..];
            self.skip_space();
        }
        let state = if self.rest.starts_with('<') {
            IfState::Token(self.bracketed()?.to_owned())
        } else {
            self.expect('[')?;
            let (tag, rest) =
                EntityTag::split(self.rest).ok_or_else(|| invalid("no entity tag in brackets"))?;
            self.rest = rest;
            self.expect(']')?;
            IfState::Tag(tag)
        };
        Ok(IfCondition { is_negated, state })
    }

    /// A URI in angle brackets. The brackets of `Simple-ref` and `Coded-URL` have no white space in them.
    fn bracketed(&mut self) -> Result<&'a str, DavError> {
        self.expect('<')?;
        let (uri, rest) = self
            .rest
            .split_once('>')
            .ok_or_else(|| invalid("an open angle bracket"))?;
        let is_uri = !uri.is_empty() && uri.bytes().all(|it| it.is_ascii_graphic() && it != b'<');
        if !is_uri {
            return Err(invalid("no URI in angle brackets"));
        }
        self.rest = rest;
        Ok(uri)
    }

    fn expect(&mut self, char: char) -> Result<(), DavError> {
        let rest = self.rest.strip_prefix(char);
        self.rest = rest.ok_or_else(|| invalid("another character than the grammar has"))?;
        Ok(())
    }
}

const fn invalid(reason: &'static str) -> DavError {
    DavError::header(FIELD, reason)
}
