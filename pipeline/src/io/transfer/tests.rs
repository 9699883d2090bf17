#![allow(clippy::cast_possible_truncation, reason = "tests with small numbers")]

use proptest::prelude::*;

use super::*;
use crate::io::Pool;

fn null() -> Arc<File> {
    Arc::new(File::open("/dev/null").unwrap())
}

fn direct() -> DirectFile {
    DirectFile { direct: Some(null()), buffered: null(), align: 4096 }
}

fn buffered() -> DirectFile {
    DirectFile::buffered(null())
}

fn pool() -> Pool {
    Pool::new(65_536, 1).unwrap()
}

fn read_op(pool: &Pool) -> Op {
    Op::read(buffered(), 0, 8192, pool.take(), 7).unwrap()
}

fn write_op() -> Op {
    Op::write(buffered(), 0, Bytes::from_static(&[1; 8192]).into(), 7).unwrap()
}

fn failure(step: Step) -> Errno {
    match step {
        Step::Done(Err(e)) => Errno::from_io_error(&e).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn eio_of_a_read_is_tried_again_three_times_at_each_offset() {
    let pool = pool();
    let mut op = read_op(&pool);
    for _ in 0..3 {
        assert!(matches!(op.advance(Err(Errno::IO)), Step::Again));
    }
    assert!(matches!(op.advance(Ok(4096)), Step::Again));
    assert_eq!(op.next().offset, 4096);
    for _ in 0..3 {
        assert!(matches!(op.advance(Err(Errno::IO)), Step::Again));
        assert_eq!(op.next(), Piece { way: Way::Buffered, offset: 4096, start: 4096, len: 4096 });
    }
    assert_eq!(failure(op.advance(Err(Errno::IO))), Errno::IO);
}

#[test]
fn eio_of_a_write_is_final() {
    assert_eq!(failure(write_op().advance(Err(Errno::IO))), Errno::IO);
}

#[test]
fn interruptions_are_endless_and_refusals_for_now_are_not() {
    let mut op = write_op();
    for _ in 0..1000 {
        assert!(matches!(op.advance(Err(Errno::INTR)), Step::Again));
    }
    for n in 0..AGAIN_RETRIES {
        let error = if n % 2 == 0 { Errno::AGAIN } else { Errno::CANCELED };
        assert!(matches!(op.advance(Err(error)), Step::Pause));
    }
    assert_eq!(failure(op.advance(Err(Errno::AGAIN))), Errno::AGAIN);
}

#[test]
fn a_write_of_nothing_is_an_error_and_a_read_of_nothing_is_the_end() {
    let Step::Done(Err(e)) = write_op().advance(Ok(0)) else { panic!() };
    assert_eq!(e.kind(), io::ErrorKind::WriteZero);
    let pool = pool();
    let mut op = read_op(&pool);
    assert!(matches!(op.advance(Ok(100)), Step::Again));
    assert!(matches!(op.advance(Ok(0)), Step::Done(Ok(100))));
}

#[test]
fn other_errors_are_final() {
    for error in [Errno::NOSPC, Errno::BADF, Errno::INVAL, Errno::FBIG, Errno::STALE] {
        assert_eq!(failure(write_op().advance(Err(error))), error);
        let pool = pool();
        assert_eq!(failure(read_op(&pool).advance(Err(error))), error);
    }
}

#[test]
fn a_refused_direct_transfer_goes_through_the_cache_from_there_on() {
    let pool = pool();
    let mut op = Op::read(direct(), 4096, 20_000, pool.take(), 7).unwrap();
    assert_eq!(op.next(), Piece { way: Way::Direct, offset: 4096, start: 0, len: 16_384 });
    assert!(matches!(op.advance(Ok(4096)), Step::Again));
    assert!(matches!(op.advance(Err(Errno::INVAL)), Step::Again));
    assert_eq!(op.next(), Piece { way: Way::Buffered, offset: 8192, start: 4096, len: 15_904 });
    assert_eq!(failure(op.advance(Err(Errno::INVAL))), Errno::INVAL);
}

#[test]
fn one_call_moves_no_more_than_the_kernel_would() {
    // No memory is touched: only sizes are asked for.
    let pool = Pool::new(5 << 30, 1).unwrap();
    let mut op = Op::read(direct(), 0, (4 << 30) + 5, pool.take(), 7).unwrap();
    assert_eq!(op.next(), Piece { way: Way::Direct, offset: 0, start: 0, len: CALL_MAX });
    assert!(matches!(op.advance(Ok(CALL_MAX)), Step::Again));
    assert!(matches!(op.advance(Ok(CALL_MAX)), Step::Again));
    assert_eq!(op.next(), Piece { way: Way::Direct, offset: 0xffff_e000, start: 0xffff_e000, len: 8192 });
    assert!(matches!(op.advance(Ok(8192)), Step::Again));
    assert_eq!(op.next(), Piece { way: Way::Buffered, offset: 4 << 30, start: 4 << 30, len: 5 });
    assert!(matches!(op.advance(Ok(5)), Step::Done(Ok(n)) if n == (4 << 30) + 5));
}

#[test]
fn impossible_requests_are_settled_without_a_call() {
    let pool = pool();
    let settled = |op: Result<Op, Completion>| op.err().map(|c| c.result.map_err(|e| e.kind()));
    let invalid = Some(Err(io::ErrorKind::InvalidInput));
    assert_eq!(settled(Op::read(buffered(), 0, 65_537, pool.take(), 0)), invalid);
    assert_eq!(settled(Op::read(buffered(), u64::MAX, 1, pool.take(), 0)), invalid);
    assert_eq!(settled(Op::read(buffered(), i64::MAX as u64, 1, pool.take(), 0)), invalid);
    assert_eq!(settled(Op::read(buffered(), 5, 0, pool.take(), 0)), Some(Ok(0)));
    assert_eq!(settled(Op::write(buffered(), 5, Bytes::new().into(), 0)), Some(Ok(0)));
    assert_eq!(settled(Op::read(buffered(), 0, 65_536, pool.take(), 0)), None);
    assert_eq!(pool.available(), 1);
}

#[test]
fn a_failed_read_hands_back_an_empty_buffer() {
    let pool = pool();
    let completion = Op::read(buffered(), 3, 10, pool.take(), 9).unwrap().complete(Err(Errno::IO.into()));
    assert_eq!((completion.tag, completion.offset, completion.buf.len()), (9, 3, 0));
}

/// What the pretended kernel does to a call.
#[derive(Debug, Clone, Copy)]
enum Whim {
    Short(usize),
    Fail(Errno),
}

fn whims() -> impl Strategy<Value = Vec<Whim>> {
    let whim = prop_oneof![
        4 => (1_usize..9000).prop_map(Whim::Short),
        1 => Just(Whim::Fail(Errno::INTR)),
        1 => Just(Whim::Fail(Errno::AGAIN)),
        1 => Just(Whim::Fail(Errno::IO)),
        1 => Just(Whim::Fail(Errno::INVAL)),
    ];
    proptest::collection::vec(whim, 0..40)
}

/// A file in memory that is as moody as a kernel may be, and strict about O_DIRECT.
struct Moody {
    contents: Vec<u8>,
    whims: std::vec::IntoIter<Whim>,
    eios: u32,
}

impl Moody {
    fn call(&mut self, op: &mut Op) -> Result<usize, Errno> {
        let piece = op.next();
        assert!(piece.len > 0);
        if piece.way == Way::Direct {
            assert_eq!(piece.offset % 4096, 0);
            assert_eq!(piece.len % 4096, 0);
            assert_eq!((op.payload.start().addr() + piece.start) % 4096, 0);
        }
        let mut len = piece.len;
        match self.whims.next() {
            Some(Whim::Short(n)) => len = len.min(n),
            Some(Whim::Fail(Errno::IO)) if self.eios == 3 || op.direction == Direction::Write => {}
            Some(Whim::Fail(Errno::INVAL)) if piece.way == Way::Buffered => {}
            Some(Whim::Fail(error)) => {
                self.eios += u32::from(error == Errno::IO);
                return Err(error);
            }
            None => {}
        }
        self.eios = 0;
        let start = piece.offset as usize;
        match &mut op.payload {
            Payload::Buf(buf) if op.direction == Direction::Read => {
                let from = self.contents.get(start..).unwrap_or_default();
                let n = len.min(from.len());
                buf.space()[piece.start..piece.start + n].copy_from_slice(&from[..n]);
                Ok(n)
            }
            payload => {
                self.contents.resize(self.contents.len().max(start + len), 0);
                let data = &payload.as_ref()[piece.start..piece.start + len];
                self.contents[start..start + len].copy_from_slice(data);
                Ok(len)
            }
        }
    }

    fn run(&mut self, op: Result<Op, Completion>) -> Completion {
        let mut op = match op {
            Ok(op) => op,
            Err(completion) => return completion,
        };
        loop {
            let answer = self.call(&mut op);
            if let Step::Done(result) = op.advance(answer) {
                return op.complete(result);
            }
        }
    }
}

/// Mostly odd numbers, sometimes aligned ones.
fn sizes(max: usize) -> impl Strategy<Value = usize> {
    prop_oneof![0..max, (0..max / 4096).prop_map(|n| n * 4096)]
}

proptest! {
    #[test]
    fn whatever_the_kernel_does_a_read_delivers_every_byte(
        size in sizes(60_000), offset in sizes(60_000), len in sizes(65_536), way: bool, whims in whims(),
    ) {
        let contents: Vec<u8> = (0..size).map(|i| (i * 31 + i / 251) as u8).collect();
        let expected = &contents[offset.min(size)..(offset + len).min(size).max(offset.min(size))];
        let mut moody = Moody { contents: contents.clone(), whims: whims.into_iter(), eios: 0 };
        let pool = pool();
        let file = if way { direct() } else { buffered() };
        let completion = moody.run(Op::read(file, offset as u64, len, pool.take(), 1));
        prop_assert_eq!(completion.result.unwrap(), expected.len());
        prop_assert_eq!(completion.buf.as_ref(), expected);
    }

    #[test]
    fn whatever_the_kernel_does_a_write_leaves_every_byte(
        size in sizes(60_000), offset in sizes(60_000), len in sizes(65_536), way: bool, whims in whims(),
        shared: bool,
    ) {
        let before = vec![0xA5; size];
        let mut expected = before.clone();
        let data: Vec<u8> = (0..len).map(|i| (i * 17 + i / 253) as u8).collect();
        if len > 0 {
            expected.resize(size.max(offset + len), 0);
            expected[offset..offset + len].copy_from_slice(&data);
        }
        let pool = pool();
        let mut buf = pool.take();
        buf.fill_from(&data);
        // A shared slice that starts at an odd address must not go to a direct descriptor either.
        let payload: Payload = if shared { buf.freeze().slice(len.min(1)..).into() } else { buf.into() };
        let skipped = if shared { len.min(1) } else { 0 };
        let file = if way { direct() } else { buffered() };
        let mut moody = Moody { contents: before, whims: whims.into_iter(), eios: 0 };
        let completion = moody.run(Op::write(file, (offset + skipped) as u64, payload, 1));
        prop_assert_eq!(completion.result.unwrap(), len - skipped);
        if skipped > 0 {
            moody.contents.resize(expected.len(), 0);
            moody.contents[offset] = data[0];
        }
        prop_assert_eq!(moody.contents, expected);
    }
}
