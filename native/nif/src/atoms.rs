//! Every atom that this library makes, named here once; none is made from input.

rustler::atoms! {
    arrow_ipc,
    changed,
    closed,
    covered,
    dirty,
    traced,
    failed,
    in_front,
    nil,
    not_installed,
    numpy,
    once,
    passive,
    process_ended,
    reaper,
    segment_busy,
    snakepit_shm,
    swept,
}
