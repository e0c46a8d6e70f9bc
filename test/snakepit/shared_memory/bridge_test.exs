defmodule Snakepit.SharedMemory.BridgeTest do
  # Calls there and back, and what they go by. What is in them is in `bridge/`.
  use Snakepit.SharedMemory.Case, async: false

  import Snakepit.SharedMemory.Transport

  alias Snakepit.SharedMemory.{Bridge, Transport}

  doctest Bridge

  describe "both ways" do
    # A worker that answers what it got: resolved, and given away anew where it is large.
    defp echoed(%{"__snakepit_shm_text__" => handle}, place), do: echoed(handle, place)

    defp echoed(%{"__snakepit_shm__" => _} = handle, place),
      do: handle |> SharedMemory.fetch!(dir: place[:dir]) |> echoed(place)

    defp echoed(%{"__snakepit_shm_inline__" => 1, "base64" => text}, place),
      do: text |> Base.decode64!() |> echoed(place)

    defp echoed(%{} = map, place), do: Map.new(map, fn {k, v} -> {k, echoed(v, place)} end)
    defp echoed(list, place) when is_list(list), do: Enum.map(list, &echoed(&1, place))

    defp echoed(binary, place) when is_binary(binary) and byte_size(binary) > 30,
      do: binary |> give(place) |> elem(0)

    defp echoed(other, _place), do: other

    defp anything(0), do: Enum.random([nil, true, -1, 2.5, "", "text", binary()])

    defp anything(depth) do
      case :rand.uniform(4) do
        1 -> for _ <- 1..:rand.uniform(3), do: anything(depth - 1)
        2 -> for n <- 1..:rand.uniform(3), into: %{}, do: {"key#{n}", anything(depth - 1)}
        _ -> anything(0)
      end
    end

    defp binary do
      size = Enum.random([1, 19, 20, 21, 30, 31, 100, 5000])
      if :rand.uniform(2) == 1, do: :rand.bytes(size), else: String.duplicate("t", size)
    end

    test "whatever is in it, however deep, comes back as it was", %{place: place} do
      :rand.seed(:exsss, {6, 4, 1})

      for _ <- 1..200 do
        args = for n <- 1..3, into: %{}, do: {"arg#{n}", anything(3)}

        tool = fn got, opts ->
          {:ok, echoed(Map.merge(got, opts[:binary_parameters] || %{}), place)}
        end

        assert call(args, place, tool, threshold: 20) == {:ok, args}
      end

      assert SharedMemory.list_regions!(place) == []
    end

    test "calls of many processes at once", %{place: place} do
      echo = fn args, _opts -> {:ok, echoed(args, place)} end

      1..50
      |> Task.async_stream(fn n ->
        args = %{"x" => String.duplicate("#{n} ", 1000)}
        assert call(args, place, echo) == {:ok, args}
      end)
      |> Stream.run()

      assert SharedMemory.list_regions!(place) == []
    end
  end

  describe "without Snakepit" do
    test "R10.5 a call is a named error" do
      assert {:error, %Error{code: :unsupported} = error} = Bridge.execute("tool", %{}, [])
      assert error.message =~ "Snakepit is not loaded"
      assert error.remedy =~ ":via"

      assert {:error, %Error{code: :unsupported}} =
               Bridge.execute_stream("tool", %{}, & &1, via: Transport.Sessioned)

      assert {:error, %Error{code: :unsupported}} = Bridge.execute("tool", %{}, via: Enum)
    end

    test "wrong arguments and options are named" do
      assert code(Bridge.execute("tool", [x: 1], via: Transport)) == :invalid_option
      assert code(Bridge.execute("tool", %{}, %{via: Transport})) == :invalid_option
      assert code(Bridge.execute("tool", %{}, via: Transport, threshold: 0)) == :invalid_option
      assert_raise Error, fn -> Bridge.value("x", dtype: :f33) end
    end

    test "the configuration names the transport, and pools may differ", %{place: place} do
      pools = %{Small => [threshold: 10, adaptive: false], Large => %{threshold: 1_000_000}}
      settings = [bridge_via: Transport, bridge_threshold: 100, bridge_pools: pools] ++ place
      seen = fn args, _ -> {:ok, is_map(args.x)} end

      with_config(settings, fn ->
        for {pool, bytes, handle?} <- [
              # Within a factor of four of the threshold it may be a trial.
              {Snakepit.Pool, 20, false},
              {Snakepit.Pool, 500, true},
              {Small, 10, true},
              {Small, 9, false},
              {Large, 200_000, false}
            ] do
          x = String.duplicate("x", bytes)
          assert Bridge.execute("t", %{x: x}, pool: pool, tool: seen) == {:ok, handle?}
        end

        assert %{threshold: 10, adaptive: false} = Bridge.threshold(Small)
        assert %{threshold: 1_000_000, adaptive: true} = Bridge.threshold(Large)
      end)

      for wrong <- [
            %{Small => 1},
            %{Small => [treshold: 1]},
            %{"Small" => []},
            [],
            %{S => [via: 1]}
          ] do
        assert {:error, error} = SharedMemory.Config.new(bridge_pools: wrong)
        assert error.message =~ ":bridge_pools"
      end
    end
  end
end
