//! Tables: what a mapping does with each of its sectors.

use std::fmt;

/// The table of an encrypted mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CryptTable {
    /// As device mapper names it.
    pub cipher: String,
    /// Where the key is, never the key: `:64:logon:alknet:data`.
    pub key: String,
    /// Added to the number of each sector, in units of 512 bytes.
    pub tweak: u64,
    /// Major and minor number of the partition.
    pub device: (u32, u32),
    /// Where the data begin on it, in units of 512 bytes.
    pub offset: u64,
    /// How much is mapped, in units of 512 bytes.
    pub sectors: u64,
    /// Options of dm-crypt.
    pub options: Vec<String>,
    /// Nothing may be written.
    pub read_only: bool,
}

/// As the kernel reads it.
impl fmt::Display for CryptTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.device;
        write!(
            f,
            "{} {} {} {major}:{minor} {}",
            self.cipher, self.key, self.tweak, self.offset
        )?;
        if !self.options.is_empty() {
            write!(f, " {} {}", self.options.len(), self.options.join(" "))?;
        }
        Ok(())
    }
}

/// One line of a table that the kernel shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmTarget {
    /// First sector, in units of 512 bytes.
    pub start: u64,
    /// How many, in units of 512 bytes.
    pub sectors: u64,
    /// `crypt`, or what else device mapper can do.
    pub kind: String,
    /// Parameters of that kind, as the table gives them.
    pub parameters: String,
}
