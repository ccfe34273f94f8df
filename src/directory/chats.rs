//! Groups: title, cool app, robot. Changed by events in the order of the events' own times, not of
//! their arrival, because DingTalk promises no order and re-sends.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::delivery::record;
use crate::dingtalk::event::{ChatId, CoolApp};
use crate::journal::{Batch, Order, ReadError, Table, View};

/// With so many groups known, messages that are not signed add none: whoever makes them up does not run out of
/// groups.
const SAID_CHATS_MAX: usize = 20_000;

/// Whether the cool app is in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatState {
    /// It is.
    Installed,
    /// It was, or the group is gone.
    Uninstalled,
}

/// One group of one app. Times are DingTalk's, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chat {
    /// Its openConversationId.
    pub id: String,
    /// The app.
    pub app: String,
    /// Its name, once known.
    pub title: Option<String>,
    /// As of when the name was that.
    pub title_at_ms: u64,
    /// Only somebody who is not to be trusted calls it that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub title_is_said: bool,
    /// Whether the cool app is in it; `None` if only its name is known.
    pub state: Option<ChatState>,
    /// As of when.
    pub state_at_ms: u64,
    /// `COOLAPP-1-…`.
    pub cool_app_code: Option<String>,
    /// The robot in it.
    pub robot_code: Option<String>,
    /// When the cool app was last installed.
    pub installed_at_ms: Option<u64>,
    /// By whom (userid).
    pub installed_by: Option<String>,
    /// The group does not exist any more.
    pub disbanded: bool,
}

/// A change of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is called this.
    Titled {
        /// Its name.
        title: String,
        /// As of when.
        at_ms: u64,
    },
    /// A message that is not signed calls it this.
    Said {
        /// Its name.
        title: String,
        /// As of when.
        at_ms: u64,
    },
    /// The cool app came.
    Installed(CoolApp),
    /// The cool app went.
    Uninstalled {
        /// When.
        at_ms: u64,
        /// Because the group went.
        disbanded: bool,
    },
}

/// All groups.
#[derive(Debug, Default)]
pub struct Chats(Mutex<BTreeMap<(String, String), Chat>>);

/// Which groups to list.
#[derive(Debug, Default)]
pub struct Filter {
    /// Part of the title, without regard to case.
    pub q: Option<String>,
    /// One app only.
    pub app: Option<String>,
    /// One state only; `None` = all.
    pub state: Option<ChatState>,
}

/// A group whose name is to be looked up.
#[derive(Debug)]
pub struct Unsure {
    /// The app.
    pub app: String,
    /// Which.
    pub id: ChatId,
    /// `COOLAPP-1-…`.
    pub cool_app_code: Option<String>,
    /// When the cool app came, in milliseconds.
    pub installed_ms: u64,
}

impl Chats {
    /// Reads the groups back. Damaged rows are put into `aside`; the next event of the group makes a new one.
    pub fn load(&self, view: &View<'_>, aside: &mut Batch) -> Result<(), ReadError> {
        let mut chats = self.lock();
        view.walk(
            Table::Chats,
            &[],
            &[],
            Order::Ascending,
            &mut |key, value| {
                match record::decode::<Chat>(value) {
                    Ok(chat) => {
                        chats.insert((chat.app.clone(), chat.id.clone()), chat);
                    }
                    Err(error) => aside.quarantine(Table::Chats, key, value, &error),
                }
                true
            },
        )
    }

    /// Applies a change and runs `submit` with it in a batch, under one lock: so what is on disk has
    /// the same order as what is in memory. Returns whether anything changed.
    pub fn apply(
        &self,
        app: &str,
        id: &ChatId,
        change: &Change,
        batch: &mut Batch,
        submit: impl FnOnce(&mut Batch),
    ) -> bool {
        let mut chats = self.lock();
        let key = (app.to_owned(), id.as_str().to_owned());
        let is_said = matches!(change, Change::Said { .. });
        if is_said && chats.len() >= SAID_CHATS_MAX && !chats.contains_key(&key) {
            submit(batch);
            return false;
        }
        let chat = chats.entry(key).or_insert_with(|| Chat::unknown(app, id));
        let changed = chat.apply(change);
        if changed {
            batch.put(Table::Chats, disk_key(chat), record::encode(chat));
        }
        submit(batch);
        changed
    }

    /// One group of one app.
    pub fn get(&self, app: &str, id: &str) -> Option<Chat> {
        self.lock().get(&(app.to_owned(), id.to_owned())).cloned()
    }

    /// The groups of that id, of any app.
    pub fn of_any_app(&self, id: &str) -> Vec<Chat> {
        self.lock()
            .values()
            .filter(|chat| chat.id == id)
            .cloned()
            .collect()
    }

    /// The groups that `filter` asks for, the newest install first.
    pub fn list(&self, filter: &Filter) -> Vec<Chat> {
        let q = filter.q.as_ref().map(|q| q.to_lowercase());
        let wanted = |chat: &&Chat| {
            filter.app.as_ref().is_none_or(|app| *app == chat.app)
                && filter.state.is_none_or(|state| chat.state == Some(state))
                && q.as_ref().is_none_or(|q| {
                    chat.title
                        .as_ref()
                        .is_some_and(|title| title.to_lowercase().contains(q))
                })
        };
        let mut chats: Vec<Chat> = self.lock().values().filter(wanted).cloned().collect();
        chats.sort_by(|a, b| b.order().cmp(&a.order()));
        chats
    }

    /// Installed groups whose name is not known for sure: there is none, it was only said, or it is from before
    /// the cool app came (again).
    pub fn unsure(&self) -> Vec<Unsure> {
        self.lock()
            .values()
            .filter(|chat| chat.state == Some(ChatState::Installed))
            .filter(|chat| {
                let is_old = chat.title_at_ms < chat.state_at_ms;
                chat.title.is_none() || chat.title_is_said || is_old
            })
            .filter_map(|chat| {
                Some(Unsure {
                    app: chat.app.clone(),
                    id: ChatId::new(&chat.id)?,
                    cool_app_code: chat.cool_app_code.clone(),
                    installed_ms: chat.state_at_ms,
                })
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), Chat>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chat {
    fn unknown(app: &str, id: &ChatId) -> Self {
        Self {
            id: id.as_str().to_owned(),
            app: app.to_owned(),
            title: None,
            title_at_ms: 0,
            title_is_said: false,
            state: None,
            state_at_ms: 0,
            cool_app_code: None,
            robot_code: None,
            installed_at_ms: None,
            installed_by: None,
            disbanded: false,
        }
    }

    /// The order of lists: newest install first, then by id.
    fn order(&self) -> (u64, &str, &str) {
        (self.installed_at_ms.unwrap_or(0), &self.app, &self.id)
    }

    fn apply(&mut self, change: &Change) -> bool {
        match change {
            Change::Titled { title, at_ms } => {
                // What was only said gives way, whenever that was.
                if *at_ms < self.title_at_ms && !self.title_is_said {
                    return false;
                }
                self.title = Some(title.clone());
                self.title_at_ms = *at_ms;
                self.title_is_said = false;
            }
            Change::Said { title, at_ms } => {
                let is_known = self.title.is_some() && !self.title_is_said;
                if is_known || *at_ms < self.title_at_ms {
                    return false;
                }
                self.title = Some(title.clone());
                self.title_at_ms = *at_ms;
                self.title_is_said = true;
            }
            Change::Installed(cool_app) => {
                if cool_app.at_ms < self.state_at_ms {
                    return false;
                }
                self.state = Some(ChatState::Installed);
                self.state_at_ms = cool_app.at_ms;
                self.installed_at_ms = Some(cool_app.at_ms);
                self.disbanded = false;
                self.cool_app_code.clone_from(&cool_app.cool_app_code);
                self.robot_code.clone_from(&cool_app.robot_code);
                self.installed_by.clone_from(&cool_app.operator);
            }
            Change::Uninstalled { at_ms, disbanded } => {
                if *at_ms < self.state_at_ms {
                    // Older than the app's leave, which came with it.
                    let is_gone = *disbanded && self.installed_at_ms.is_none_or(|at| at < *at_ms);
                    let is_news = is_gone && !self.disbanded;
                    self.disbanded |= is_gone;
                    return is_news;
                }
                self.state = Some(ChatState::Uninstalled);
                self.state_at_ms = *at_ms;
                // An app that leaves a group with it does not bring the group back.
                self.disbanded |= *disbanded;
            }
        }
        true
    }
}

fn disk_key(chat: &Chat) -> Vec<u8> {
    let mut key = chat.app.clone().into_bytes();
    key.push(0);
    key.extend_from_slice(chat.id.as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ChatId {
        ChatId::new("cidAb+cd/Ef==").unwrap()
    }

    fn installed(at_ms: u64) -> Change {
        Change::Installed(CoolApp {
            chat: id(),
            cool_app_code: Some("COOLAPP-1-X".into()),
            robot_code: None,
            operator: None,
            at_ms,
        })
    }

    fn titled(title: &str, at_ms: u64) -> Change {
        Change::Titled {
            title: title.into(),
            at_ms,
        }
    }

    fn said(title: &str, at_ms: u64) -> Change {
        Change::Said {
            title: title.into(),
            at_ms,
        }
    }

    #[test]
    fn what_is_only_said_adds_no_group_without_end() {
        let chats = Chats::default();
        let change = |n: usize, change: &Change| {
            let id = ChatId::new(&format!("cid{n:08}")).unwrap();
            chats.apply("app", &id, change, &mut Batch::default(), |_| ())
        };
        for n in 0..SAID_CHATS_MAX {
            assert!(change(n, &said("a", 1)));
        }
        assert!(!change(SAID_CHATS_MAX, &said("a", 1)));
        assert_eq!(chats.lock().len(), SAID_CHATS_MAX);
        assert!(change(0, &said("b", 2)), "those that are known can change");
        assert!(change(SAID_CHATS_MAX, &installed(1)), "and real ones come");
    }

    /// All orders of arrival lead to the same state.
    #[test]
    fn the_events_own_time_decides_not_the_order_of_arrival() {
        let changes = [
            installed(10),
            Change::Uninstalled {
                at_ms: 20,
                disbanded: false,
            },
            installed(30),
            titled("old", 12),
            titled("new", 31),
            said("forged", 40),
        ];
        let mut orders = vec![];
        permutations(&mut (0..changes.len()).collect(), 0, &mut orders);
        for order in orders {
            let mut chat = Chat::unknown("a", &id());
            for index in &order {
                chat.apply(&changes[*index]);
            }
            assert_eq!(chat.state, Some(ChatState::Installed), "{order:?}");
            assert_eq!(chat.title.as_deref(), Some("new"), "{order:?}");
            assert_eq!(chat.installed_at_ms, Some(30), "{order:?}");
        }
    }

    #[test]
    fn a_group_that_was_disbanded_stays_so_when_its_app_leaves_with_it() {
        let left = |at_ms, disbanded| Change::Uninstalled { at_ms, disbanded };
        let changes = [installed(10), left(15, true), left(20, false)];
        let mut orders = vec![];
        permutations(&mut (0..changes.len()).collect(), 0, &mut orders);
        for order in orders {
            let mut chat = Chat::unknown("a", &id());
            for index in &order {
                chat.apply(&changes[*index]);
            }
            assert!(chat.disbanded, "{order:?}");
            assert_eq!(chat.state, Some(ChatState::Uninstalled), "{order:?}");
            chat.apply(&installed(30));
            assert!(!chat.disbanded, "another group of that id, {order:?}");
        }
    }

    fn permutations(items: &mut Vec<usize>, from: usize, out: &mut Vec<Vec<usize>>) {
        if from == items.len() {
            out.push(items.clone());
        }
        for i in from..items.len() {
            items.swap(from, i);
            permutations(items, from + 1, out);
            items.swap(from, i);
        }
    }

    #[test]
    fn lists_are_filtered_by_title_and_state_newest_install_first() {
        let chats = Chats::default();
        for (id, title, at_ms) in [
            ("cidaa", "值班 A", 1),
            ("cidbb", "值班 B", 3),
            ("cidcc", "other", 2),
        ] {
            let id = ChatId::new(id).unwrap();
            let mut batch = Batch::default();
            assert!(chats.apply("app", &id, &installed(at_ms), &mut batch, |_| ()));
            assert!(chats.apply("app", &id, &titled(title, 5), &mut batch, |_| ()));
        }
        let filter = Filter {
            q: Some("值班".into()),
            state: Some(ChatState::Installed),
            app: None,
        };
        let ids: Vec<_> = chats
            .list(&filter)
            .into_iter()
            .map(|chat| chat.id)
            .collect();
        assert_eq!(ids, ["cidbb", "cidaa"]);
    }
}
