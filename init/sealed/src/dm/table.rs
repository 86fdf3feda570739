//! Tables: how a mapping handles its sectors.

use std::fmt;

/// The table of an encrypted mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CryptTable {
    /// Name of the cipher for the device mapper.
    pub cipher: String,
    /// Reference to the key, and never the key itself: `:64:logon:alknet:data`.
    pub key: String,
    /// Offset that is added to the number of each sector, in units of 512 bytes.
    pub tweak: u64,
    /// Major and minor number of the partition.
    pub device: (u32, u32),
    /// Start of the data on the partition, in units of 512 bytes.
    pub offset: u64,
    /// Length of the mapping, in units of 512 bytes.
    pub sectors: u64,
    /// Options of dm-crypt.
    pub options: Vec<String>,
    /// Whether the mapping refuses writes.
    pub read_only: bool,
}

/// The text that the kernel parses.
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

/// One line of a table, as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmTarget {
    /// First sector, in units of 512 bytes.
    pub start: u64,
    /// Number of sectors, in units of 512 bytes.
    pub sectors: u64,
    /// Type of the target: `crypt`, or another one.
    pub kind: String,
    /// Parameters of the target, as in the table.
    pub parameters: String,
}
