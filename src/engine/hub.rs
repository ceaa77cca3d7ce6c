//! Loading from the Hub: the download with the options, progress and cancel flag of the load that follows it.

use std::path::Path;

use super::files::Files;
use super::model::tell;
use super::{Cancel, LoadOptions, Model, Progress, ProgressFn, Stage};
use crate::error::Result;
#[cfg(feature = "hf-hub")]
use crate::load::hub::HfHub;
use crate::load::hub::{Client, Download, ENDPOINT, Hub, RepoId, Revision, Watch};

/// A caller hears of each so many bytes: often enough for a slow line, seldom enough for a fast one.
const TELL_BYTES: u64 = 64 << 10;

pub fn load(repo_id: &str, options: &LoadOptions, progress: Option<&mut ProgressFn<'_>>) -> Result<Model> {
    load_from(ENDPOINT, repo_id, options, progress)
}

/// The same from another endpoint.
pub(crate) fn load_from(
    endpoint: &str,
    repo_id: &str,
    options: &LoadOptions,
    mut progress: Option<&mut ProgressFn<'_>>,
) -> Result<Model> {
    let repo = RepoId::parse(repo_id)?;
    let revision = Revision::parse(options.hub_revision.as_deref().unwrap_or("main"))?;
    let cache = options.hub_cache_dir.as_deref();
    let hub = if options.offline { Hub::offline(cache)? } else { Hub::new(download(endpoint, options)?, cache)? };
    let mut waiting = Waiting { options, progress: &mut progress, told: None };
    let path = hub.fetch(&repo, &revision, options.file.as_deref(), &mut waiting)?;
    // The file is chosen by now.
    let options = &LoadOptions { file: None, ..options.clone() };
    Model::load(path, options, progress)
}

fn download(endpoint: &str, options: &LoadOptions) -> Result<Box<dyn Download>> {
    let token = options.hub_token.as_deref();
    #[cfg(feature = "hf-hub")]
    if options.hf_hub {
        return Ok(Box::new(HfHub::new(endpoint, token)?));
    }
    Ok(Box::new(Client::new(endpoint, token)?))
}

struct Waiting<'a, 'p, 'f> {
    options: &'a LoadOptions,
    progress: &'a mut Option<&'p mut ProgressFn<'f>>,
    told: Option<u64>,
}

impl Watch for Waiting<'_, '_, '_> {
    fn check(&mut self) -> Result<()> {
        self.options.cancel.as_ref().map_or(Ok(()), Cancel::check)
    }

    fn bytes(&mut self, done: u64, total: u64) -> Result<()> {
        self.check()?;
        if self.told.is_some_and(|told| done == told || (done - told < TELL_BYTES && done < total)) {
            return Ok(());
        }
        self.told = Some(done);
        tell(self.progress, Progress { stage: Stage::Download, done, total })
    }

    fn weights_follow(&mut self, directory: &Path) -> Result<()> {
        Files::open(directory, &LoadOptions { file: None, ..self.options.clone() }).map(drop)
    }
}
