//! Identifiers that follow from the build, so that the same build makes the same bytes.

use uuid::Uuid;

/// Namespace of every identifier of an image (RFC 9562 section 5.5). Changing it changes every image.
const NAMESPACE: Uuid = Uuid::from_u128(0x38af_efaf_131f_47ef_8fec_c502_5396_00c6);

/// The identifiers of one build.
#[derive(Clone, Debug)]
pub(crate) struct BuildIds {
    build: String,
}

impl BuildIds {
    pub(crate) fn new(version: &str, git: &str) -> Self {
        Self {
            build: format!("{version}/{git}"),
        }
    }

    /// The UUIDv5 for one role, such as `disk` or `esp`.
    pub(crate) fn uuid(&self, role: &str) -> Uuid {
        Uuid::new_v5(&NAMESPACE, format!("{}/{role}", self.build).as_bytes())
    }

    /// The 32-bit serial number that a FAT volume carries.
    pub(crate) fn fat_volume(&self) -> u32 {
        self.uuid("esp-volume").as_fields().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_build_and_differ_by_role() {
        let ids = BuildIds::new("0.1.0", "abc");
        assert_eq!(ids.uuid("disk"), BuildIds::new("0.1.0", "abc").uuid("disk"));
        assert_ne!(ids.uuid("disk"), ids.uuid("esp"));
        assert_ne!(ids.uuid("disk"), BuildIds::new("0.1.0", "abd").uuid("disk"));
        assert_eq!(ids.uuid("disk").get_version_num(), 5);
    }
}
