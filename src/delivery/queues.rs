//! Many queues in one piece of memory.
//!
//! Items lie there about as they came, whatever queue they are in. Whoever serves the queues in turn then goes
//! through memory in order, and a turn costs as much with a million waiting as with a thousand; with memory
//! of its own for each queue every turn would go to another end of it.

/// The items of many queues.
#[derive(Debug)]
pub(super) struct Items<T> {
    places: Vec<Place<T>>,
    /// The first of the free places, which are chained.
    free: usize,
    len: usize,
}

#[derive(Debug)]
struct Place<T> {
    item: T,
    /// The place behind it in its queue.
    next: usize,
}

/// One queue, whose items are in the [`Items`] that it is always used with.
#[derive(Debug)]
pub(super) struct Queue {
    first: usize,
    last: usize,
    len: usize,
}

const NONE: usize = usize::MAX;
/// So many places are kept when nothing waits.
const KEPT_MAX: usize = 1_024;

impl Queue {
    pub(super) const EMPTY: Self = Self {
        first: NONE,
        last: NONE,
        len: 0,
    };

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: NONE,
            len: 0,
        }
    }
}

impl<T: Copy> Items<T> {
    pub(super) fn front(&self, queue: &Queue) -> Option<T> {
        self.places.get(queue.first).map(|place| place.item)
    }

    pub(super) fn push_back(&mut self, queue: &mut Queue, item: T) {
        let at = self.take_place(item, NONE);
        match self.places.get_mut(queue.last) {
            Some(last) => last.next = at,
            None => queue.first = at,
        }
        queue.last = at;
        queue.len += 1;
    }

    pub(super) fn push_front(&mut self, queue: &mut Queue, item: T) {
        queue.first = self.take_place(item, queue.first);
        if queue.last == NONE {
            queue.last = queue.first;
        }
        queue.len += 1;
    }

    pub(super) fn pop_front(&mut self, queue: &mut Queue) -> Option<T> {
        let at = queue.first;
        let place = self.places.get_mut(at)?;
        let item = place.item;
        queue.first = std::mem::replace(&mut place.next, self.free);
        self.free = at;
        self.len -= 1;
        queue.len -= 1;
        if queue.len == 0 {
            queue.last = NONE;
        }
        if self.len == 0 && self.places.len() > KEPT_MAX {
            *self = Self::default();
        }
        Some(item)
    }

    /// Keeps the items that are `wanted`, in their order.
    pub(super) fn retain(&mut self, queue: &mut Queue, wanted: impl Fn(T) -> bool) {
        for _ in 0..queue.len {
            if let Some(item) = self.pop_front(queue)
                && wanted(item)
            {
                self.push_back(queue, item);
            }
        }
    }

    fn take_place(&mut self, item: T, next: usize) -> usize {
        self.len += 1;
        let at = self.free;
        if let Some(place) = self.places.get_mut(at) {
            self.free = std::mem::replace(place, Place { item, next }).next;
            return at;
        }
        self.places.push(Place { item, next });
        self.places.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        PushBack,
        PushFront,
        PopFront,
        RetainOdd,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::PushBack),
            1 => Just(Step::PushFront),
            4 => Just(Step::PopFront),
            1 => Just(Step::RetainOdd),
        ]
    }

    proptest! {
        #[test]
        fn three_queues_in_one_memory_are_three_queues(
            steps in prop::collection::vec((0_usize..3, step()), 0..200),
        ) {
            let mut items = Items::default();
            let mut queues = [const { Queue::EMPTY }; 3];
            let mut models: [VecDeque<usize>; 3] = Default::default();
            for (item, (which, step)) in steps.into_iter().enumerate() {
                let (queue, model) = (&mut queues[which], &mut models[which]);
                match step {
                    Step::PushBack => {
                        items.push_back(queue, item);
                        model.push_back(item);
                    }
                    Step::PushFront => {
                        items.push_front(queue, item);
                        model.push_front(item);
                    }
                    Step::PopFront => prop_assert_eq!(items.pop_front(queue), model.pop_front()),
                    Step::RetainOdd => {
                        items.retain(queue, |item| item % 2 == 1);
                        model.retain(|item| item % 2 == 1);
                    }
                }
                for (queue, model) in queues.iter().zip(&models) {
                    prop_assert_eq!(items.front(queue), model.front().copied());
                    prop_assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
                }
            }
            for (queue, model) in queues.iter_mut().zip(&models) {
                let rest: VecDeque<_> = std::iter::from_fn(|| items.pop_front(queue)).collect();
                prop_assert_eq!(&rest, model);
            }
            prop_assert_eq!(items.len, 0);
        }
    }

    #[test]
    fn memory_is_used_again_and_given_back_when_nothing_waits() {
        let (mut items, mut queue) = (Items::default(), Queue::EMPTY);
        for item in 0..10_000 {
            items.push_back(&mut queue, item);
            if item >= 100 {
                items.pop_front(&mut queue);
            }
        }
        assert_eq!(items.places.len(), 101);
        for item in 0..10_000 {
            items.push_back(&mut queue, item);
        }
        while items.pop_front(&mut queue).is_some() {}
        assert_eq!(items.places.capacity(), 0);
        items.push_back(&mut queue, 7);
        assert_eq!(items.pop_front(&mut queue), Some(7));
    }
}
