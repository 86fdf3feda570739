//! Bundles of the channel `beta` on a machine that follows `stable`. The same keys sign both channels, and no signed document
//! names one: a version of `beta` has a pre-release part, and one of `stable` has none.

use alknet_update::{ReleaseInfo, VerifiedTargets};

use super::refusal::{RefusalCode, UpdateRefusal};
use super::stage::StageOrder;

/// Whether documents may be of `beta` on a machine that follows `stable`. `None`: they were refused before they named a
/// release.
///
/// The versions of such documents do not count as seen: they are higher than those of `stable`, so the machine would refuse
/// its own channel. A hub or the server of the channel could bring this about by a bundle that PID 1 then refuses, whole or
/// cut behind any document. Those that a caller which may start versions sends to be staged count as those of `stable`.
pub(super) fn may_be_beta(order: &StageOrder, verified: Option<&VerifiedTargets>) -> bool {
    let is_chosen = !(order.unasked || order.dry_run || order.limited);
    if is_chosen || !order.follows_stable {
        return false;
    }
    verified.is_none_or(|verified| {
        let mut releases = verified.iter().filter_map(|it| it.release.as_ref());
        releases.any(|release| release.version.is_pre_release())
    })
}

/// Refuses a version of `beta` that the machine itself or a hub brings to a machine that follows `stable`.
pub(super) fn require_own_channel(
    order: &StageOrder,
    release: &ReleaseInfo,
) -> Result<(), UpdateRefusal> {
    let version = &release.version;
    if !(order.unasked && order.follows_stable && version.is_pre_release()) {
        return Ok(());
    }
    let text = format_args!(
        "version {version} comes before a release, and this machine follows the channel stable; `alknet update` installs it \
         all the same, or name the channel beta in the configuration"
    );
    Err(UpdateRefusal::new(RefusalCode::OtherChannel, text))
}
