//! Shares for the slots that need them: a share that a helper brought, or else why there is no
//! share.

use alknet_vault::SecretArr;
use alknet_vault::slots::{Kek, KekError, KekRequest, KekSource, KmsParams, SlotParams};

use super::{EscrowClient, EscrowRelease, ExchangeProgress};

/// Why there is no share.
#[derive(Debug)]
pub(crate) struct ShareUnavailable {
    pub(crate) why: String,
    /// A helper asked for it and came back without it.
    pub(crate) was_requested: bool,
    /// The other node answered and refused.
    refused: bool,
}

impl EscrowClient {
    /// A key source for slots of type `kms`. It has the shares that helpers brought, and requests
    /// missing ones.
    pub(crate) fn source(&self) -> EscrowKekSource<'_> {
        EscrowKekSource {
            escrow: self,
            refusals: Vec::new(),
            refused: false,
        }
    }

    /// The share of that slot, once a helper has brought it. Otherwise why there is no share, and
    /// helpers ask for it from now on. It is given out once: helpers ask again for one that does
    /// not open the slot.
    pub(crate) fn take_share(&self, params: &KmsParams) -> Result<SecretArr<32>, ShareUnavailable> {
        let mut state = self.state();
        let network = state.network;
        let known = state.releases.iter_mut().find(|it| it.params == *params);
        let Some(release) = known else {
            let progress = ExchangeProgress::default();
            let none = progress.no_share(network);
            state.releases.push(EscrowRelease {
                params: params.clone(),
                share: None,
                progress,
            });
            return Err(none);
        };
        if let Some(share) = release.share.take() {
            release.progress.last = Some("what it released does not open the slot".to_owned());
            return Ok(share);
        }
        Err(release.progress.no_share(network))
    }

    /// Whether there is a node with a share that no helper has asked yet.
    pub(crate) fn has_unasked(&self) -> bool {
        let state = self.state();
        state.releases.iter().any(|release| {
            let progress = &release.progress;
            release.share.is_none() && progress.last.is_none()
        })
    }
}

impl ExchangeProgress {
    fn no_share(&self, network: bool) -> ShareUnavailable {
        ShareUnavailable {
            why: self.text(network).to_owned(),
            was_requested: self.last.is_some(),
            refused: self.refused,
        }
    }
}

/// See [`EscrowClient::source`].
#[derive(Debug)]
pub(crate) struct EscrowKekSource<'a> {
    escrow: &'a EscrowClient,
    refusals: Vec<String>,
    refused: bool,
}

impl EscrowKekSource<'_> {
    /// Why there is no key, for each node that was asked.
    pub(crate) fn refusals(&self) -> String {
        self.refusals.join("; ")
    }

    /// Whether a node answered and refused.
    pub(crate) fn was_refused(&self) -> bool {
        self.refused
    }
}

impl KekSource for EscrowKekSource<'_> {
    fn kek(&mut self, request: KekRequest<'_>) -> Result<Kek, KekError> {
        let SlotParams::Kms(params) = request.params else {
            return Err(KekError::Absent);
        };
        match self.escrow.take_share(params) {
            Ok(share) => Ok(params.kek(&share, request.vault)),
            Err(none) => {
                self.refused |= none.refused;
                // Each of the two copies of the vault asks, and the owner should read each reason once.
                if !self.refusals.contains(&none.why) {
                    self.refusals.push(none.why);
                }
                if none.was_requested {
                    Err(KekError::Refused)
                } else {
                    Err(KekError::Absent)
                }
            }
        }
    }
}
