//! Lists of launches that come again. One token's are the last one's, with the position and the id in memory of the device, until
//! attention splits its keys otherwise or a cache grows; a device that can start a whole list at once records those it has seen twice.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use candle_core::Result;

use super::device::{Launch, Launcher, ListKey};

/// A list as a device keeps it.
pub(super) trait Recording: Send {
    /// Starts all that was recorded, behind all that was started before.
    ///
    /// # Safety
    /// As [`Launcher::start`], for the list that was recorded.
    unsafe fn start(&self) -> Result<()>;
}

/// What a device has recorded for somebody whose lists come again.
pub struct Replays {
    kept: Vec<Kept>,
    /// Hashes of the last lists that were not recorded.
    seen: VecDeque<u64>,
    /// Lists that were started.
    started: u64,
    /// Not where the device has recorded nothing.
    records: bool,
}

struct Kept {
    /// Under which it was asked for last.
    key: Vec<u64>,
    launches: Vec<Launch>,
    recording: Box<dyn Recording>,
    /// When it was started last, by the number of lists before.
    used: u64,
}

/// Lists that are kept at most: of some sessions, alone and together.
const MOST: usize = 8;
/// Hashes that are: of so many sessions in turn, each has its lists again.
const MOST_SEEN: usize = 16 * MOST;
/// Lists that are started while one that none of them is stays recorded: recording takes as long as starting some lists one by one.
const UNUSED: u64 = 64;

impl Default for Replays {
    fn default() -> Self {
        Self { kept: Vec::new(), seen: VecDeque::new(), started: 0, records: true }
    }
}

impl Replays {
    /// Starts a list as one that was recorded, if one is its equal in every launch, buffer and word; else launch by launch.
    ///
    /// # Safety
    /// As [`Launcher::start`].
    pub(super) unsafe fn start(&mut self, launcher: &Arc<dyn Launcher>, launches: &[Launch], key: &[u64]) -> Result<()> {
        self.started += 1;
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.launches == launches) {
            kept.used = self.started;
            if kept.key != key {
                kept.key = key.to_vec();
            }
            // SAFETY: what was recorded is what the caller vouches for.
            return unsafe { kept.recording.start() };
        }
        if self.records && self.is_worth_recording(launches) {
            match launcher.clone().record(launches) {
                Ok(Some(recording)) => {
                    let kept = Kept { key: key.to_vec(), launches: launches.to_vec(), recording, used: self.started };
                    // SAFETY: the same.
                    unsafe { kept.recording.start() }?;
                    self.kept.push(kept);
                    return Ok(());
                }
                Ok(None) => self.records = false,
                Err(error) => {
                    self.records = false;
                    log::info!("the launches of a token are not recorded, and started one by one: {error}");
                }
            }
        }
        // SAFETY: the caller vouches for the same.
        unsafe { launcher.start(launches) }
    }

    /// Starts the list that was recorded under a key, without making it; `false` if there is none. Nothing has the key of no words.
    ///
    /// # Safety
    /// As [`Launcher::start`], for the one list that the caller makes under this key, as long as what is recorded here lives.
    pub(super) unsafe fn start_known(&mut self, key: &ListKey<'_>) -> Result<bool> {
        let key = key.words();
        let Some(kept) = self.kept.iter_mut().find(|kept| !key.is_empty() && kept.key == key) else { return Ok(false) };
        self.started += 1;
        kept.used = self.started;
        // SAFETY: the caller vouches for what was recorded.
        unsafe { kept.recording.start() }?;
        Ok(true)
    }

    /// What was recorded under a key.
    #[cfg(test)]
    pub fn known(&self, key: &ListKey<'_>) -> Option<&[Launch]> {
        self.kept.iter().find(|kept| kept.key == key.words()).map(|kept| &kept.launches[..])
    }

    /// Whether a list was seen before, and there is room for it; makes room where something has not been used for long.
    fn is_worth_recording(&mut self, launches: &[Launch]) -> bool {
        let mut hasher = DefaultHasher::new();
        launches.hash(&mut hasher);
        let hash = hasher.finish();
        if !self.seen.contains(&hash) {
            if self.seen.len() == MOST_SEEN {
                self.seen.pop_front();
            }
            self.seen.push_back(hash);
            return false;
        }
        if self.kept.len() < MOST {
            return true;
        }
        let oldest = self.kept.iter().enumerate().min_by_key(|(_, kept)| kept.used).map(|(at, kept)| (at, kept.used));
        match oldest {
            Some((at, used)) if used + UNUSED < self.started => {
                self.kept.swap_remove(at);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use candle_core::bail;

    use super::super::Library;
    use super::super::batch::CompiledBatch;
    use super::super::device::Place;
    use super::*;

    /// What a device was told: lists that were started one by one, recorded, and replayed, by their first words.
    #[derive(Debug, Default)]
    struct Device {
        told: Mutex<Vec<(&'static str, u32)>>,
        fails: bool,
        batch: CompiledBatch,
    }

    impl Device {
        fn tell(&self, what: &'static str, launches: &[Launch]) {
            self.told.lock().unwrap().push((what, launches[0].words()[0]));
        }
    }

    impl Launcher for Device {
        fn kernel(&self, _: Library, _: &str, _: u32) -> Result<usize> {
            Ok(0)
        }

        unsafe fn start(&self, launches: &[Launch]) -> Result<()> {
            self.tell("started", launches);
            Ok(())
        }

        fn record(self: Arc<Self>, launches: &[Launch]) -> Result<Option<Box<dyn Recording>>> {
            self.tell("recorded", launches);
            if self.fails {
                bail!("no graphs here")
            }
            Ok(Some(Box::new(Recorded(self, launches.to_vec()))))
        }

        unsafe fn upload(&self, _: Place, _: &[u32]) -> Result<()> {
            Ok(())
        }

        unsafe fn download(&self, _: Place, _: &mut [f32]) -> Result<()> {
            Ok(())
        }

        fn units(&self) -> u32 {
            1
        }

        fn batch(&self) -> &CompiledBatch {
            &self.batch
        }
    }

    struct Recorded(Arc<Device>, Vec<Launch>);

    impl Recording for Recorded {
        unsafe fn start(&self) -> Result<()> {
            self.0.tell("replayed", &self.1);
            Ok(())
        }
    }

    /// What the device is told of lists, which differ in the last word of the last launch.
    fn told(device: &Arc<Device>, replays: &mut Replays, lists: impl IntoIterator<Item = u32>) -> Vec<(&'static str, u32)> {
        let launcher: Arc<dyn Launcher> = device.clone();
        for number in lists {
            let list = [Launch::with_words([number, 7]), Launch::with_words([7, number])];
            // SAFETY: nothing runs.
            unsafe { replays.start(&launcher, &list, &[]) }.unwrap();
        }
        std::mem::take(&mut *device.told.lock().unwrap())
    }

    #[test]
    fn a_list_that_comes_again_is_recorded_and_replayed() {
        let (device, mut replays) = (Arc::new(Device::default()), Replays::default());
        assert_eq!(told(&device, &mut replays, [1, 1]), [("started", 1), ("recorded", 1), ("replayed", 1)]);
        assert_eq!(told(&device, &mut replays, [1, 2, 1]), [("replayed", 1), ("started", 2), ("replayed", 1)]);
        assert_eq!(told(&device, &mut replays, [2, 2, 1]), [("recorded", 2), ("replayed", 2), ("replayed", 2), ("replayed", 1)]);
    }

    #[test]
    fn a_recorded_list_is_known_by_its_key() {
        let (device, mut replays) = (Arc::new(Device::default()), Replays::default());
        let launcher: Arc<dyn Launcher> = device.clone();
        let list = [Launch::with_words([5, 7])];
        for _ in 0..2 {
            // SAFETY: nothing runs.
            unsafe { replays.start(&launcher, &list, &[3]) }.unwrap();
        }
        let of = |words: &[usize]| {
            let mut key = ListKey::default();
            words.iter().for_each(|word| key.number(*word));
            key
        };
        let known = |replays: &mut Replays, words: &[usize]| {
            // SAFETY: nothing runs.
            unsafe { replays.start_known(&of(words)) }.unwrap()
        };
        assert!(
            known(&mut replays, &[3]) && !known(&mut replays, &[4]) && !known(&mut replays, &[]) && !known(&mut replays, &[3, 0])
        );
        // Under another key it is known by that one.
        // SAFETY: nothing runs.
        unsafe { replays.start(&launcher, &list, &[4]) }.unwrap();
        assert!(known(&mut replays, &[4]) && !known(&mut replays, &[3]));
        let told: Vec<_> = device.told.lock().unwrap().iter().map(|told| told.0).collect();
        assert_eq!(told, ["started", "recorded", "replayed", "replayed", "replayed", "replayed"]);
    }

    #[test]
    fn few_lists_are_kept_those_in_use() {
        let (device, mut replays) = (Arc::new(Device::default()), Replays::default());
        let most = MOST as u32;
        told(&device, &mut replays, (0..most).flat_map(|list| [list, list]));
        assert_eq!(replays.kept.len(), MOST);
        // While all are in use another is started one by one, however often.
        let others = told(&device, &mut replays, (0..UNUSED as u32).flat_map(|i| [i % most, 100]));
        assert!(others.iter().all(|told| *told == ("started", 100) || (told.0 == "replayed" && told.1 < most)));
        // The one that was not used for longest goes.
        let last = told(&device, &mut replays, (0..2 * UNUSED as u32).map(|i| if i % 2 == 0 { 100 } else { 1 + i % (most - 1) }));
        assert!(last.contains(&("recorded", 100)) && replays.kept.len() == MOST);
        assert!(!replays.kept.iter().any(|kept| kept.launches[0].words()[0] == 0));
    }

    #[test]
    fn lists_of_many_sessions_in_turn_are_recorded() {
        let (device, mut replays) = (Arc::new(Device::default()), Replays::default());
        let turns = (0..3).flat_map(|_| 1..=2 * MOST as u32);
        let all = told(&device, &mut replays, turns);
        assert_eq!(all.iter().filter(|(what, _)| *what == "recorded").count(), MOST);
    }

    #[test]
    fn a_device_that_records_nothing_is_asked_once() {
        let (device, mut replays) = (Arc::new(Device { fails: true, ..Device::default() }), Replays::default());
        let all = told(&device, &mut replays, [1, 1, 1, 2, 2]);
        assert_eq!(all, [("started", 1), ("recorded", 1), ("started", 1), ("started", 1), ("started", 2), ("started", 2)]);
    }
}
