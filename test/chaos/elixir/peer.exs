# Elixir's peer of the chaos harness: the steps of `peer/src/peer.rs`, on `Snakepit.SharedMemory`.
#
#     elixir -pa EBIN elixir/peer.exs NAMESPACE DIR UID SEED PAUSE_US

Code.require_file("record.exs", __DIR__)
Code.require_file("value.exs", __DIR__)

defmodule Chaos.Peer do
  @moduledoc false
  # Regions that it created are `%{region: id}`, removed when it gives them up; those that it took
  # over are mappings, and are handed over.

  alias Chaos.{Record, Value}
  alias Snakepit.SharedMemory, as: SHM

  @segments 12

  def run([namespace, dir, uid, seed, pause_us]) do
    # Standard output is for the judge; what goes wrong is a record there.
    Logger.configure(level: :none)
    Application.put_env(:snakepit, :shared_memory, namespace: namespace, dir: dir)
    {:ok, _} = Application.ensure_all_started(:snakepit_shared_memory)
    :rand.seed(:exsss, String.to_integer(seed))
    {:ok, out} = :file.open(~c"/proc/self/fd/1", [:raw, :write, :binary])
    peer = self()

    spawn_link(fn ->
      :eof = IO.binread(:stdio, 1)
      send(peer, :stop)
    end)

    state = %{
      out: out,
      uid: String.to_integer(uid),
      created: 0,
      writers: %{},
      readers: %{},
      pause: String.to_integer(pause_us)
    }

    state = loop(state)
    state = Enum.reduce(Map.keys(state.readers), state, &detach(&2, &1))
    Enum.reduce(Map.keys(state.writers), state, &give(&2, &1))
    :ok = Application.stop(:snakepit_shared_memory)
  end

  defp loop(state) do
    receive do
      :stop -> state
    after
      :rand.uniform(2 * div(state.pause, 1000) + 1) -> state |> step() |> loop()
    end
  end

  defp step(state) do
    {seg, roll} = {:rand.uniform(@segments) - 1, :rand.uniform(100)}
    held = any(state.writers)

    cond do
      roll <= 12 and map_size(state.writers) < 2 and not Map.has_key?(state.writers, seg) ->
        if :rand.uniform(2) == 1, do: take_over(state, seg), else: create(state, seg)

      roll in 13..40 and held != nil ->
        Enum.reduce(1..:rand.uniform(5), state, fn _, state -> write(state, held) end)

      roll in 41..43 and held != nil ->
        give(state, held)

      roll == 44 and held != nil and rem(state.created, 4) == 0 ->
        seal(state, held)

      roll in 45..48 ->
        if state.readers == %{}, do: state, else: detach(state, any(state.readers))

      roll == 49 ->
        look(state)

      roll in 50..62 ->
        wait(state, seg)

      # What this node writes it has at hand; others' regions are attached.
      Map.has_key?(state.writers, seg) ->
        state

      true ->
        Enum.reduce(1..:rand.uniform(4), state, fn _, state -> read(state, seg) end)
    end
  end

  defp any(map) when map == %{}, do: nil
  defp any(map), do: map |> Map.keys() |> Enum.random()

  defp about(seg, tag), do: %{seg: seg, tag: tag, t0: Record.now()}

  # --- writing ---

  defp create(state, seg) do
    # Its own reader of that name first: this VM keeps one mapping of a region of its own.
    state = detach(state, seg)
    state = %{state | created: state.created + 1}
    tag = Bitwise.bsl(state.uid, 32) + state.created
    begun = about(seg, tag)
    Record.put(state, :claim_begin, begun)

    opts = [
      name: Value.name(seg),
      slots: Value.slots(seg),
      integrity: Value.integrity(seg),
      schema_id: tag
    ]

    case SHM.allocate_region(Value.capacity(seg), opts) do
      {:ok, id} ->
        Record.put(state, :claimed, Map.put(begun, :aux, 1))

        hold(state, seg, %{region: id, tag: tag, mirror: "", version: 0, sealed: false, own: true})

      {:error, error} ->
        Record.error(state, :create, error, begun)
        state
    end
  end

  defp hold(state, seg, held), do: put_in(state.writers[seg], held)

  defp take_over(state, seg) do
    state = detach(state, seg)
    begun = about(seg, 0)
    Record.put(state, :attach_begin, begun)
    Record.put(state, :claim_begin, begun)

    case SHM.map_region(Value.name(seg), access_mode: :read_write) do
      {:ok, region} ->
        keep(state, seg, region, begun)

      {:error, error} ->
        Record.error(state, :claim, error, begun)
        Record.put(state, :detached, begun)
        state
    end
  end

  # A segment without a value does not say which one it is: it is left again.
  defp keep(state, seg, region, begun) do
    with {:ok, value} <- SHM.read(region), {:ok, info} <- SHM.get_region_info(region) do
      tag = Value.tag(value)
      said = %{begun | tag: tag}
      Record.put(state, :attached, said)
      claimed = Map.merge(said, %{version: info.version, aux: info.generation})
      Record.put(state, :claimed, claimed)
      held = %{region: region, tag: tag, mirror: value, sealed: false, own: false}
      hold(state, seg, Map.put(held, :version, info.version))
    else
      {:error, error} ->
        if error.code not in [:empty, :torn], do: Record.error(state, :read, error, begun)
        leave(state, region, begun)
        state
    end
  end

  defp leave(state, region, begun) do
    Record.put(state, :give_begin, begun)
    Record.put(state, :detach_begin, begun)
    with {:error, error} <- SHM.unmap_region(region), do: Record.error(state, :give, error, begun)
    Record.put(state, :given, begun)
    Record.put(state, :detached, begun)
  end

  defp write(state, seg) do
    case state.writers[seg] do
      %{sealed: true} -> if :rand.uniform(4) == 1, do: give(state, seg), else: state
      %{} = held -> write(state, seg, held)
      nil -> state
    end
  end

  defp write(state, seg, held) do
    version = held.version + 2

    {how, value, data, opts} =
      if held.mirror != "" and byte_size(held.mirror) <= 65_536 and :rand.uniform(3) == 1 do
        {offset, data, value} = Value.patch(seg, held.mirror)
        {0, value, data, [offset: offset]}
      else
        value = Value.whole(seg, held.tag, version, state.uid)
        {2, value, value, []}
      end

    intent =
      Map.merge(about(seg, held.tag), %{
        version: version,
        len: byte_size(value),
        crc: :erlang.crc32(value),
        aux: how
      })

    Record.put(state, :intent, intent)

    case SHM.write(held.region, data, opts) do
      {:ok, ^version} ->
        Record.put(state, :published, intent)
        hold(state, seg, %{held | mirror: value, version: version})

      {:ok, other} ->
        Record.put(state, :bad, %{intent | aux: 100, version: other})
        hold(state, seg, %{held | mirror: value, version: other})

      {:error, error} ->
        Record.error(state, :write, error, intent)
        hold(state, seg, %{held | mirror: ""})
    end
  end

  defp seal(state, seg) do
    held = state.writers[seg]
    begun = about(seg, held.tag)

    if held.sealed or held.version == 0 do
      state
    else
      Record.put(state, :seal_begin, begun)

      case SHM.seal(held.region) do
        {:ok, _version} ->
          Record.put(state, :sealed, begun)
          hold(state, seg, %{held | sealed: true})

        {:error, error} ->
          Record.error(state, :seal, error, begun)
          state
      end
    end
  end

  defp give(state, seg) do
    {held, writers} = Map.pop!(state.writers, seg)
    begun = Map.put(about(seg, held.tag), :aux, if(held.own, do: 2, else: 0))

    if held.own do
      Record.put(state, :give_begin, begun)
      answer = SHM.deallocate_region(held.region)
      with {:error, error} <- answer, do: Record.error(state, :give, error, begun)
      Record.put(state, :given, begun)
    else
      leave(state, held.region, begun)
    end

    %{state | writers: writers}
  end

  # --- reading ---

  defp attach(state, seg) do
    if Map.has_key?(state.readers, seg) or Map.has_key?(state.writers, seg) do
      state
    else
      begun = about(seg, 0)
      Record.put(state, :attach_begin, begun)

      case SHM.map_region(Value.name(seg), access_mode: :read_only) do
        {:ok, region} ->
          attached(state, seg, region, begun)

        {:error, error} ->
          Record.error(state, :attach, error, begun)
          state
      end
    end
  end

  defp attached(state, seg, region, begun) do
    case SHM.read(region) do
      {:ok, value} ->
        tag = Value.tag(value)
        Record.put(state, :attached, %{begun | tag: tag})
        put_in(state.readers[seg], %{region: region, tag: tag})

      {:error, error} ->
        if error.code not in [:empty, :torn, :version_conflict, :closed],
          do: Record.error(state, :read, error, begun)

        put_in(state.readers[seg], %{region: region, tag: 0}) |> detach(seg)
    end
  end

  defp detach(state, seg) do
    case Map.pop(state.readers, seg) do
      {nil, _} ->
        state

      {held, readers} ->
        begun = about(seg, held.tag)
        Record.put(state, :detach_begin, begun)
        answer = SHM.unmap_region(held.region)
        # Zero-copy binaries of sealed values keep their mapping until they are collected.
        :erlang.garbage_collect()
        with {:error, error} <- answer, do: Record.error(state, :detach, error, begun)
        Record.put(state, :detached, begun)
        %{state | readers: readers}
    end
  end

  defp read(state, seg) do
    state = attach(state, seg)
    if held = state.readers[seg], do: read(state, seg, held), else: state
  end

  defp read(state, seg, held) do
    begun = about(seg, held.tag)
    way = with {:error, _} <- SHM.binary(held.region), do: :not_sealed

    value =
      case way do
        {:ok, binary} -> {:ok, binary}
        _ -> SHM.read(held.region)
      end

    case value do
      {:ok, value} ->
        t1 = Record.now()
        aux = Value.fault(value, seg, held.tag)
        kind = if aux == 0, do: :read, else: :bad
        crc = :erlang.crc32(value)
        read = %{t1: t1, len: byte_size(value), crc: crc, aux: aux}
        Record.put(state, kind, Map.merge(begun, read))
        if way != :not_sealed or :rand.uniform(3) == 1, do: detach(state, seg), else: state

      {:error, error} ->
        Record.error(state, :read, error, begun)
        if error.code in [:empty, :closed], do: detach(state, seg), else: state
    end
  end

  # As an application does: by a message.
  defp wait(state, seg) do
    state = attach(state, seg)
    if held = state.readers[seg], do: wait(state, seg, held), else: state
  end

  defp wait(state, seg, held) do
    begun = about(seg, held.tag)

    case SHM.subscribe(held.region, active: :once) do
      {:ok, ref} ->
        receive do
          {:snakepit_shm, ^ref, {:changed, _id, version}} ->
            Record.put(state, :waited, Map.put(begun, :version, version))
        after
          :rand.uniform(40) -> :ok
        end

        SHM.unsubscribe(ref)
        flush(ref)
        state

      {:error, error} ->
        Record.error(state, :wait, error, begun)
        detach(state, seg)
    end
  end

  defp flush(ref) do
    receive do
      {:snakepit_shm, ^ref, _} -> flush(ref)
    after
      0 -> :ok
    end
  end

  defp look(state) do
    begun = about(0, 0)
    answer = if :rand.uniform(2) == 1, do: SHM.list_regions(), else: SHM.cleanup_regions()
    with {:error, error} <- answer, do: Record.error(state, :look, error, begun)
    state
  end
end

Chaos.Peer.run(System.argv())
