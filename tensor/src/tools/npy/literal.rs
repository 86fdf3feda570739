//! The Python literal in the header of a NumPy file.

use crate::dtype::Dtype;
use crate::error::{QuotedText, Result, TensorError, TensorErrorCode, fail};
use crate::limits::RANK_MAX;
use crate::tools::npy::{NpyHeader, TYPES};

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`
pub(super) struct Literal<'t>(pub(super) &'t str);

impl<'t> Literal<'t> {
    pub(super) fn header(mut self) -> Result<NpyHeader> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.take('}') {
            let key = self.string()?;
            self.expect(':')?;
            let again = match key {
                "descr" => descr.replace(self.descr()?).is_some(),
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                _ => {
                    let what = format!("NumPy header: unknown key {}", QuotedText(key));
                    return fail(TensorErrorCode::Header, what);
                }
            };
            if again {
                let what = format!("NumPy header: key {} comes twice", QuotedText(key));
                return fail(TensorErrorCode::DupKey, what);
            }
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        if !self.0.trim().is_empty() {
            return Err(self.missing_error("the end"));
        }
        let (Some((dtype, big_endian)), Some(fortran_order), Some(shape)) = (descr, fortran, shape)
        else {
            return fail(
                TensorErrorCode::Header,
                "NumPy header: descr, fortran_order or shape is missing",
            );
        };
        Ok(NpyHeader {
            dtype,
            big_endian,
            fortran_order,
            shape,
        })
    }

    fn descr(&mut self) -> Result<(Dtype, bool)> {
        if self.0.trim_start().starts_with('[') {
            return fail(
                TensorErrorCode::Dtype,
                "NumPy arrays of records have no place in a container",
            );
        }
        let text = self.string()?;
        let named = |name: &str| TYPES.iter().find(|(_, theirs)| *theirs == name);
        let mut letters = text.chars();
        // `=` is the byte order of the machine that wrote the file. It is read as little-endian, because every
        // machine that this crate is built for is little-endian.
        let big_endian = match letters.next() {
            Some('<' | '|' | '=') => false,
            Some('>') => true,
            _ => {
                return fail(
                    TensorErrorCode::Dtype,
                    format!("NumPy type {}", QuotedText(text)),
                );
            }
        };
        match named(letters.as_str()) {
            // A single byte has no byte order.
            Some((dtype, _)) => Ok((*dtype, big_endian && dtype.bits() > 8)),
            None => fail(
                TensorErrorCode::Dtype,
                format!("NumPy type {}", QuotedText(text)),
            ),
        }
    }

    fn tuple(&mut self) -> Result<Vec<u64>> {
        let mut sizes = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            // The limit is checked before the push, so a header cannot fill memory with dimensions.
            if sizes.len() >= RANK_MAX as usize {
                return fail(
                    TensorErrorCode::Limit,
                    format!("more than {RANK_MAX} dimensions"),
                );
            }
            sizes.push(self.number()?);
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(sizes)
    }

    fn number(&mut self) -> Result<u64> {
        let text = self.0.trim_start();
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, rest) = text.split_at(end);
        let number = digits
            .parse()
            .map_err(|_| self.missing_error("a whole number"))?;
        // Python 2 wrote `L` after long numbers.
        self.0 = rest.strip_prefix('L').unwrap_or(rest);
        Ok(number)
    }

    fn boolean(&mut self) -> Result<bool> {
        let text = self.0.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = text.strip_prefix(word) {
                self.0 = rest;
                return Ok(value);
            }
        }
        Err(self.missing_error("True or False"))
    }

    fn string(&mut self) -> Result<&'t str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let quote = quote.ok_or_else(|| self.missing_error("a string"))?;
        let (content, rest) = text[1..]
            .split_once(quote)
            .ok_or_else(|| self.missing_error("the end of a string"))?;
        self.0 = rest;
        Ok(content)
    }

    fn take(&mut self, sign: char) -> bool {
        let rest = self.0.trim_start().strip_prefix(sign);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, sign: char) -> Result<()> {
        match self.take(sign) {
            true => Ok(()),
            false => Err(self.missing_error(&format!("'{sign}'"))),
        }
    }

    fn missing_error(&self, wanted: &str) -> TensorError {
        let what = format!(
            "NumPy header: {wanted} is missing at {}",
            QuotedText(self.0.trim_end())
        );
        TensorError::new(TensorErrorCode::Header, what)
    }
}
