//! Properties that the server computes (RFC 4918 §15, RFC 4331).

use alknet_store::{ContentHash, EntryLock};
use jiff::Timestamp;

use crate::dav::headers::EntityTag;
use crate::dav::media::media_type;
use crate::dav::time::http_date;
use crate::dav::xml::XmlName;

use super::PropertyElement;
use super::locks::{SUPPORTED_LOCK, lock_discovery};

/// A property that the server computes. No client can set one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LiveProperty {
    /// When the entry was made.
    CreationDate,
    /// The last component of the path.
    DisplayName,
    /// Bytes of a file.
    ContentLength,
    /// Media type of a file, by the extension of its name.
    ContentType,
    /// Entity tag of a file.
    EntityTag,
    /// When the entry was changed.
    LastModified,
    /// The locks that cover the entry.
    LockDiscovery,
    /// Bytes that the bucket can still take.
    QuotaAvailable,
    /// Bytes that the bucket has.
    QuotaUsed,
    /// Whether the entry is a collection.
    ResourceType,
    /// The kinds of locks that the entry can have.
    SupportedLock,
}

/// What a bucket uses of its quota, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaUse {
    /// Bytes that the bucket has.
    pub used: u64,
    /// Bytes that it can still take; `None` without a quota.
    pub available: Option<u64>,
}

/// An entry, as its properties show it.
#[derive(Clone, Copy, Debug)]
pub struct PropertySource<'a> {
    /// The last component of its path; for the root of a branch the name of the bucket.
    pub name: &'a str,
    /// Content of a file; `None` for a directory.
    pub hash: Option<ContentHash>,
    /// Bytes of the content.
    pub size: u64,
    /// Time of the last modification, in nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i64,
    /// Time of its first version, in milliseconds since 1970-01-01 UTC, if it is known.
    pub created_ms: Option<i64>,
    /// The locks that cover the entry.
    pub locks: &'a [EntryLock],
    /// For each lock the URI reference of the entry that it was taken on, in the same order.
    pub lock_roots: &'a [String],
    /// The present time, in milliseconds since 1970-01-01 UTC.
    pub now_ms: u64,
    /// What the bucket uses.
    pub quota: Option<QuotaUse>,
}

impl LiveProperty {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::CreationDate,
        Self::DisplayName,
        Self::ContentLength,
        Self::ContentType,
        Self::EntityTag,
        Self::LastModified,
        Self::LockDiscovery,
        Self::QuotaAvailable,
        Self::QuotaUsed,
        Self::ResourceType,
        Self::SupportedLock,
    ];

    /// The local name in the namespace `DAV:`.
    #[must_use]
    pub const fn local_name(self) -> &'static str {
        match self {
            Self::CreationDate => "creationdate",
            Self::DisplayName => "displayname",
            Self::ContentLength => "getcontentlength",
            Self::ContentType => "getcontenttype",
            Self::EntityTag => "getetag",
            Self::LastModified => "getlastmodified",
            Self::LockDiscovery => "lockdiscovery",
            Self::QuotaAvailable => "quota-available-bytes",
            Self::QuotaUsed => "quota-used-bytes",
            Self::ResourceType => "resourcetype",
            Self::SupportedLock => "supportedlock",
        }
    }

    /// The property with this name.
    #[must_use]
    pub fn from_name(name: &XmlName) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|it| name.is_dav(it.local_name()))
    }

    /// Whether `allprop` means it. Quotas are asked for by name (RFC 4331 §2).
    #[must_use]
    pub const fn is_in_allprop(self) -> bool {
        !matches!(self, Self::QuotaAvailable | Self::QuotaUsed)
    }

    /// The property of this entry; `None` if an entry of its kind does not have it.
    #[must_use]
    pub fn find(self, entry: &PropertySource<'_>) -> Option<PropertyElement> {
        let text = |text: &str| Some(PropertyElement::dav_text(self.local_name(), text));
        let xml = |xml: &str| Some(PropertyElement::dav_xml(self.local_name(), xml));
        match self {
            // RFC 3339, in whole seconds.
            Self::CreationDate => {
                let created = Timestamp::from_second(entry.created_ms?.div_euclid(1000));
                text(&created.ok()?.to_string())
            }
            Self::DisplayName => text(entry.name),
            Self::ContentLength => {
                entry.hash?;
                text(&entry.size.to_string())
            }
            Self::ContentType => {
                entry.hash?;
                text(&media_type(entry.name))
            }
            Self::EntityTag => text(&EntityTag::of_content(entry.hash?).to_string()),
            Self::LastModified => text(&http_date(entry.modified_ns)?),
            Self::LockDiscovery => {
                xml(&lock_discovery(entry.locks, entry.lock_roots, entry.now_ms))
            }
            // A bucket without a quota has no such property (RFC 4331 §3).
            Self::QuotaAvailable => text(&entry.quota?.available?.to_string()),
            Self::QuotaUsed => text(&entry.quota?.used.to_string()),
            Self::ResourceType => match entry.hash {
                // Only files have a hash.
                None => xml("<D:collection/>"),
                Some(_) => xml(""),
            },
            Self::SupportedLock => xml(SUPPORTED_LOCK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: PropertySource<'_> = PropertySource {
        name: "a&b.txt",
        hash: Some(ContentHash::EMPTY),
        size: 7,
        modified_ns: 784_111_777_999_999_999,
        created_ms: Some(-1),
        locks: &[],
        lock_roots: &[],
        now_ms: 0,
        quota: None,
    };

    fn value(property: LiveProperty, entry: &PropertySource<'_>) -> Option<String> {
        property.find(entry).map(|it| it.as_str().to_owned())
    }

    #[test]
    fn a_file_has_the_properties_of_the_standard() {
        for (property, expected) in [
            (
                LiveProperty::CreationDate,
                "<D:creationdate>1969-12-31T23:59:59Z</D:creationdate>",
            ),
            (
                LiveProperty::DisplayName,
                "<D:displayname>a&amp;b.txt</D:displayname>",
            ),
            (
                LiveProperty::ContentLength,
                "<D:getcontentlength>7</D:getcontentlength>",
            ),
            (
                LiveProperty::ContentType,
                "<D:getcontenttype>text/plain; charset=utf-8</D:getcontenttype>",
            ),
            (
                LiveProperty::LastModified,
                "<D:getlastmodified>Sun, 06 Nov 1994 08:49:37 GMT</D:getlastmodified>",
            ),
            (LiveProperty::LockDiscovery, "<D:lockdiscovery/>"),
            (LiveProperty::ResourceType, "<D:resourcetype/>"),
        ] {
            assert_eq!(value(property, &FILE).as_deref(), Some(expected));
        }
        let tag = value(LiveProperty::EntityTag, &FILE).expect("a tag");
        assert!(tag.starts_with("<D:getetag>&quot;b3-af1349b9"), "{tag}");
    }

    #[test]
    fn a_directory_has_no_content() {
        let directory = PropertySource {
            hash: None,
            quota: Some(QuotaUse {
                used: 3,
                available: None,
            }),
            ..FILE
        };
        for property in [
            LiveProperty::ContentLength,
            LiveProperty::ContentType,
            LiveProperty::EntityTag,
            LiveProperty::QuotaAvailable,
        ] {
            assert_eq!(value(property, &directory), None, "{property:?}");
        }
        let kind = value(LiveProperty::ResourceType, &directory);
        assert_eq!(
            kind.as_deref(),
            Some("<D:resourcetype><D:collection/></D:resourcetype>")
        );
        let used = value(LiveProperty::QuotaUsed, &directory);
        assert_eq!(
            used.as_deref(),
            Some("<D:quota-used-bytes>3</D:quota-used-bytes>")
        );
    }

    #[test]
    fn names_are_found() {
        for property in LiveProperty::ALL {
            let name = XmlName::dav(property.local_name());
            assert_eq!(LiveProperty::from_name(&name), Some(property));
            let other = XmlName::new("urn:x", property.local_name());
            assert_eq!(LiveProperty::from_name(&other), None);
        }
    }
}
