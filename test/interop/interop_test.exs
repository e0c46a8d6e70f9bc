Code.require_file("peers.exs", __DIR__)

defmodule Interop.Test do
  @moduledoc false
  # Each of Elixir, Python and Rust writes, the two others read: the same tests for all six pairings.

  use Snakepit.SharedMemory.Case, async: false

  alias Interop.Peers

  @moduletag :interop
  @moduletag timeout: 120_000

  @languages [:elixir, :python, :rust]
  @name "between"
  @large 1_048_576

  setup_all do
    # Once, and not in the time that the first test has.
    Peers.rust()
    :ok
  end

  defp peers(languages, place) do
    for language <- languages, do: Peers.start(language, place)
  end

  defp done(peers), do: Enum.each(peers, &Peers.stop/1)

  # What there is to compare: Elixir's read does not say of what type a value is.
  defp assert_same(answer, expected) do
    assert Map.take(answer, Map.keys(expected)) == Map.take(expected, Map.keys(answer))
    assert answer["data"] == expected["data"]
  end

  for writer <- @languages, reader <- @languages -- [writer] do
    @pair [writer, reader]

    describe "#{writer} writes, #{reader} reads:" do
      test "values of any length, whole, with their versions", %{place: place} do
        [writer, reader] = peers = peers(@pair, place)
        assert Peers.ask(writer, "create", %{name: @name, size: @large, slots: 2}) == %{}
        assert Peers.ask(reader, "attach", %{name: @name}) == %{}
        assert %{"error" => "empty"} = Peers.ask(reader, "read", %{name: @name})

        for {length, round} <- Enum.with_index([1, 2, 63, 64, 65, 4096, 100_001, @large, 7], 1) do
          data = :rand.bytes(length)
          version = 2 * round
          assert Peers.ask(writer, "write", %{name: @name, data: data}) == %{"version" => version}
          read = Peers.ask(reader, "read", %{name: @name})
          assert_same(read, %{"data" => data, "version" => version})
        end

        Peers.ask(reader, "detach", %{name: @name})
        Peers.ask(writer, "end", %{name: @name})
        assert %{"error" => "not_found"} = Peers.ask(reader, "attach", %{name: @name})
        done(peers)
      end

      test "arrays with dtype and shape", %{place: place} do
        [writer, reader] = peers = peers(@pair, place)
        Peers.ask(writer, "create", %{name: @name, size: 4096, slots: 4})
        Peers.ask(reader, "attach", %{name: @name})

        for {dtype, shape, bytes} <- [
              {"<f4", [2, 3], 24},
              {">i2", [5], 10},
              {"<c16", [1, 2, 1, 2], 64},
              {"|b1", [3, 1], 3},
              {"<u8", [1, 1, 1, 1, 1, 2], 16}
            ] do
          data = if dtype == "|b1", do: <<1, 0, 1>>, else: :rand.bytes(bytes)
          fields = %{name: @name, data: data, dtype: dtype, shape: shape}
          assert %{"version" => _} = Peers.ask(writer, "write", fields)
          expected = %{"data" => data, "dtype" => dtype, "shape" => shape}
          assert_same(Peers.ask(reader, "read", %{name: @name}), expected)
        end

        Peers.ask(reader, "detach", %{name: @name})
        Peers.ask(writer, "end", %{name: @name})
        done(peers)
      end

      test "patches, also those that make the value longer", %{place: place} do
        [writer, reader] = peers = peers(@pair, place)
        Peers.ask(writer, "create", %{name: @name, size: 4096, slots: 3})
        Peers.ask(reader, "attach", %{name: @name})
        Peers.ask(writer, "write", %{name: @name, data: "0123456789"})

        for {offset, patch, expected} <- [
              {2, "AB", "01AB456789"},
              {8, "CDEF", "01AB4567CDEF"},
              {0, "x", "x1AB4567CDEF"},
              {12, "!", "x1AB4567CDEF!"}
            ] do
          Peers.ask(writer, "write_at", %{name: @name, offset: offset, data: patch})
          assert %{"data" => ^expected} = Peers.ask(reader, "read", %{name: @name})
        end

        too_far = %{name: @name, offset: 4090, data: "beyond the end"}
        assert %{"error" => "out_of_bounds"} = Peers.ask(writer, "write_at", too_far)
        assert %{"data" => "x1AB4567CDEF!"} = Peers.ask(reader, "read", %{name: @name})

        Peers.ask(reader, "detach", %{name: @name})
        Peers.ask(writer, "end", %{name: @name})
        done(peers)
      end

      test "a reader that sleeps is woken by a write", %{place: place} do
        [writer, reader] = peers = peers(@pair, place)
        Peers.ask(writer, "create", %{name: @name, size: 4096, slots: 2})
        Peers.ask(reader, "attach", %{name: @name})

        for round <- 1..20 do
          asked = Peers.send_request(reader, "wait", %{name: @name, since: 2 * (round - 1)})
          Peers.ask(writer, "write", %{name: @name, data: <<round>>})
          assert Peers.answer(asked) == %{"version" => 2 * round}
          assert %{"data" => <<^round>>} = Peers.ask(reader, "read", %{name: @name})
        end

        Peers.ask(reader, "detach", %{name: @name})
        Peers.ask(writer, "end", %{name: @name})
        done(peers)
      end

      test "a handle is resolved, and refused once its region is gone", %{place: place} do
        [writer, reader] = peers = peers(@pair, place)

        for {dtype, shape, data} <- [
              {"<f8", [2, 2], :rand.bytes(32)},
              {"|u1", [512, 2048], :rand.bytes(@large)}
            ] do
          fields = %{name: @name, data: data, dtype: dtype, shape: shape}
          assert %{"handle" => handle} = Peers.ask(writer, "share", fields)
          resolved = Peers.ask(reader, "resolve", %{handle: handle})
          assert resolved == %{"data" => data, "dtype" => dtype, "shape" => shape}

          # One of an earlier region of that name; one that claims what cannot be.
          earlier = %{handle | "token" => String.duplicate("0", String.length(handle["token"]))}
          assert %{"error" => "not_found"} = Peers.ask(reader, "resolve", %{handle: earlier})
          hostile = %{handle | "bytes" => handle["bytes"] + 1}
          assert %{"error" => "invalid_handle"} = Peers.ask(reader, "resolve", %{handle: hostile})

          Peers.ask(writer, "end", %{name: @name})
          assert %{"error" => "not_found"} = Peers.ask(reader, "resolve", %{handle: handle})
        end

        done(peers)
      end

      test "a name is taken, a writer is busy, a sealed value stays", %{place: place} do
        [first, second] = peers = peers(@pair, place)
        segment = %{name: @name, size: 4096, slots: 2}
        assert Peers.ask(first, "create", segment) == %{}
        assert %{"error" => "already_exists"} = Peers.ask(second, "create", segment)
        assert %{"error" => "segment_busy"} = Peers.ask(second, "take_over", %{name: @name})

        Peers.ask(first, "write", %{name: @name, data: "for ever"})
        assert Peers.ask(first, "seal", %{name: @name}) == %{}
        assert %{"error" => "sealed"} = Peers.ask(first, "write", %{name: @name, data: "no"})
        Peers.ask(second, "attach", %{name: @name})
        assert %{"data" => "for ever"} = Peers.ask(second, "read", %{name: @name})

        Peers.ask(second, "detach", %{name: @name})
        Peers.ask(first, "end", %{name: @name})
        done(peers)
      end
    end
  end

  # Elixir's regions end with their owner: it takes over, but does not hand over what it allocated.
  for writer <- [:python, :rust], heir <- @languages -- [writer] do
    @pair [writer, heir]

    test "#{writer} hands over to #{heir}, and versions go on", %{place: place} do
      [writer, heir] = peers = peers(@pair, place)
      Peers.ask(writer, "create", %{name: @name, size: 4096, slots: 2})
      Peers.ask(writer, "write", %{name: @name, data: "first"})
      Peers.ask(writer, "attach", %{name: @name})
      Peers.ask(writer, "hand_over", %{name: @name})

      assert Peers.ask(heir, "take_over", %{name: @name}) == %{}
      assert Peers.ask(heir, "write", %{name: @name, data: "second"}) == %{"version" => 4}
      assert %{"data" => "second"} = Peers.ask(writer, "read", %{name: @name})
      assert %{"error" => "segment_busy"} = Peers.ask(writer, "take_over", %{name: @name})

      Peers.ask(writer, "detach", %{name: @name})
      Peers.ask(heir, "hand_over", %{name: @name})
      Peers.ask(writer, "take_over", %{name: @name})
      Peers.ask(writer, "end", %{name: @name})
      done(peers)
    end
  end
end
