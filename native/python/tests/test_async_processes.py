"""Waiting in event loops beside other processes: peers, forked children, ends of interpreters."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess

import pytest

import snakepit_shm as shm
from conftest import PATIENCE, Place, until
from loops import run, waiting


def test_another_process_wakes_and_no_value_is_missed(
    place: Place, processes: list[subprocess.Popen[str]]
) -> None:
    """It answers each value the moment it was read: a lost wake-up would hang."""
    rounds = 500

    async def main() -> None:
        with place.create("ping") as ping:
            echo = place.start(
                f"""
                import asyncio, snakepit_shm

                async def main():
                    with (snakepit_shm.attach("ping") as ping,
                          snakepit_shm.create("pong", 4096) as pong):
                        print("ready", flush=True)
                        for _ in range({rounds}):
                            await ping.wait_async()
                            pong.write(ping.read())
                        input()

                asyncio.run(main())
                """
            )
            processes.append(echo)
            assert echo.stdout is not None
            assert echo.stdout.readline() == "ready\n"
            with place.attach("pong") as pong:
                for n in range(rounds):
                    ping.write(n.to_bytes(4, "little"))
                    await pong.wait_async()
                    assert int.from_bytes(pong.read(), "little") == n
                _, err = echo.communicate("\n", timeout=PATIENCE)
                assert (echo.returncode, err) == (0, "")

    run(main())


def test_a_writer_that_dies_is_followed_by_its_successor(
    place: Place, processes: list[subprocess.Popen[str]]
) -> None:
    async def main() -> None:
        victim = place.start(
            """
            import snakepit_shm
            writer = snakepit_shm.create("it", 4096)
            writer.write(b"1")
            print("ready", flush=True)
            input()
            """
        )
        processes.append(victim)
        assert victim.stdout is not None
        victim.stdout.readline()
        with place.attach() as reader:
            task = asyncio.create_task(reader.wait_async(since=2))
            await waiting(task)
            victim.send_signal(signal.SIGKILL)
            victim.wait(PATIENCE)
            writer = until(lambda: _takeover(place), "the claim of a dead writer")
            writer.write(b"2")
            assert await task == 4
            again = asyncio.create_task(reader.wait_async())
            await waiting(again)
            writer.close()
            with pytest.raises(shm.ClosedError):
                await again

    run(main())


def _takeover(place: Place) -> shm.Writer | None:
    with contextlib.suppress(shm.SegmentBusyError):
        return place.attach_writer()
    return None


def test_a_forked_child_has_a_notifier_of_its_own(place: Place) -> None:
    out = place.run(
        """
        import asyncio, os, warnings
        import snakepit_shm
        from snakepit_shm import _async, _native

        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
        writer = snakepit_shm.create("it", 4096)
        reader = snakepit_shm.attach("it")

        async def once(reader):
            task = asyncio.create_task(reader.wait_async())
            await asyncio.sleep(0)
            writer.write(b"x")
            return await task

        async def one_child(reader):
            reader = snakepit_shm.attach("it")
            try:
                return await reader.wait_async(since=reader.version, timeout=0.05)
            except TimeoutError:
                return "waited"
            finally:
                reader.close()

        async def closed_under_it(reader):
            task = asyncio.create_task(reader.wait_async(since=reader.version))
            await asyncio.sleep(0)
            reader.close()
            try:
                await task
            except snakepit_shm.ClosedError:
                return "closed"

        async def main():
            assert await once(reader) == 2
            hub = _async._hubs[asyncio.get_running_loop()]
            pending = asyncio.create_task(reader.wait_async())
            await asyncio.sleep(0)
            descriptor = hub._notifier.fileno()
            if (child := os.fork()) == 0:
                try:
                    assert hub._notifier.fileno() == -1
                    assert "eventfd" not in os.readlink(f"/proc/self/fd/{descriptor}")
                except FileNotFoundError:
                    pass
                except BaseException:
                    os._exit(1)
                assert hub._notifier.take() == []
                hub._notifier.cancel(1)
                try:
                    hub._notifier.watch(reader, 2)
                except snakepit_shm.UnsupportedError:
                    os._exit(7)
                os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            writer.write(b"y")
            assert await pending == 4

        asyncio.run(main())
        if (child := os.fork()) == 0:
            assert asyncio.run(one_child(reader)) == "waited"
            assert asyncio.run(closed_under_it(reader)) == "closed"
            os._exit(8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 8
        reader.close()
        writer.close()
        print("both")
        """
    )
    assert out == "both\n"


def test_the_interpreter_ends_with_waits_pending(place: Place) -> None:
    out = place.run(
        """
        import asyncio, snakepit_shm
        writer = snakepit_shm.create("it", 4096)
        reader = snakepit_shm.attach("it")
        loop = asyncio.new_event_loop()
        task = loop.create_task(reader.wait_async())
        loop.call_later(0.05, loop.stop)
        loop.run_forever()
        assert not task.done()
        task._log_destroy_pending = False
        print("ending", flush=True)
        """.replace("import asyncio,", "import asyncio, warnings,").replace(
            "writer =", "warnings.simplefilter('ignore')\n        writer =", 1
        )
    )
    assert out == "ending\n"
    assert place.files() == []


def test_without_descriptors_a_wait_is_refused_by_name(place: Place) -> None:
    out = place.run(
        """
        import asyncio, resource, snakepit_shm, snakepit_shm._async

        async def main():
            with snakepit_shm.create("it", 4096) as writer, snakepit_shm.attach("it") as reader:
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                try:
                    await reader.wait_async()
                except snakepit_shm.ResourceExhaustedError as error:
                    print(error)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                writer.write(b"x")
                print(await reader.wait_async())

        asyncio.run(main())
        """
    )
    said, version = out.splitlines()
    assert "descriptors" in said
    assert version == "2"
