//! Shares as whoever opens a slot gets them: what an errand brought, else why there is none.

use alknet_vault::SecretArr;
use alknet_vault::slots::{Kek, KekError, KekRequest, KekSource, KmsParams, SlotParams};

use super::{Course, Escrow, Release};

/// Why there is no share.
#[derive(Debug)]
pub(crate) struct NoShare {
    pub(crate) why: String,
    /// Somebody went for it and came back without.
    pub(crate) asked: bool,
    /// The other node answered, and did not want to.
    refused: bool,
}

impl Escrow {
    /// Answers for slots of type `kms`: with what was brought, else by wanting it.
    pub(crate) fn source(&self) -> Source<'_> {
        Source {
            escrow: self,
            refusals: Vec::new(),
            refused: false,
        }
    }

    /// The share of that slot, once it was brought; else why there is none, and it is wanted from now on.
    /// It is given out once: one that does not open the slot is asked for again.
    pub(crate) fn take_share(&self, params: &KmsParams) -> Result<SecretArr<32>, NoShare> {
        let mut state = self.state();
        let network = state.network;
        let known = state.releases.iter_mut().find(|it| it.params == *params);
        let Some(release) = known else {
            let course = Course::default();
            let none = course.no_share(network);
            state.releases.push(Release {
                params: params.clone(),
                share: None,
                course,
            });
            return Err(none);
        };
        if let Some(share) = release.share.take() {
            release.course.last = Some("what it released does not open the slot".to_owned());
            return Ok(share);
        }
        Err(release.course.no_share(network))
    }

    /// Whether a node that has a share was not asked yet.
    pub(crate) fn has_unasked(&self) -> bool {
        let state = self.state();
        state.releases.iter().any(|release| {
            let course = &release.course;
            release.share.is_none() && course.last.is_none()
        })
    }
}

impl Course {
    fn no_share(&self, network: bool) -> NoShare {
        NoShare {
            why: self.text(network).to_owned(),
            asked: self.last.is_some(),
            refused: self.refused,
        }
    }
}

/// See [`Escrow::source`].
#[derive(Debug)]
pub(crate) struct Source<'a> {
    escrow: &'a Escrow,
    refusals: Vec<String>,
    refused: bool,
}

impl Source<'_> {
    /// Why there is no key, for each node that was wanted.
    pub(crate) fn refusals(&self) -> String {
        self.refusals.join("; ")
    }

    /// Whether a node answered and did not want to.
    pub(crate) fn was_refused(&self) -> bool {
        self.refused
    }
}

impl KekSource for Source<'_> {
    fn kek(&mut self, request: KekRequest<'_>) -> Result<Kek, KekError> {
        let SlotParams::Kms(params) = request.params else {
            return Err(KekError::Absent);
        };
        match self.escrow.take_share(params) {
            Ok(share) => Ok(params.kek(&share, request.vault)),
            Err(none) => {
                self.refused |= none.refused;
                // Both copies of the vault ask.
                if !self.refusals.contains(&none.why) {
                    self.refusals.push(none.why);
                }
                if none.asked {
                    Err(KekError::Refused)
                } else {
                    Err(KekError::Absent)
                }
            }
        }
    }
}
