//! Every atom that this library makes, named here once; none is made from input.

rustler::atoms! {
    arrow_ipc,
    changed,
    closed,
    dirty,
    failed,
    nil,
    numpy,
    once,
    passive,
    process_ended,
    reaper,
    snakepit_shm,
    swept,
}
