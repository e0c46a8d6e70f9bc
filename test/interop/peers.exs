Code.require_file("../../examples/demo/json.ex", __DIR__)

defmodule Interop.Peers do
  @moduledoc false
  # Elixir, Python and Rust behind one function, `ask(peer, request)`, so that a test is written
  # once for every pairing. An answer is a map; of an error, `%{"error" => code}`.
  #
  #   writers: create (name, size, slots), write (name, data, dtype, shape) -> version,
  #            write_at (name, offset, data) -> version, seal, take_over, hand_over, end (name),
  #            share (name, data, dtype, shape) -> handle
  #   readers: attach, detach (name), read (name) -> data, version, of some dtype and shape,
  #            wait (name, since) -> version, resolve (handle) -> data, dtype, shape

  alias Demo.JSON
  alias Snakepit.SharedMemory, as: SHM

  @root Path.expand("../..", __DIR__)
  @patience 30_000

  @doc "Starts the peer of a language; `place` says the namespace and the directory."
  def start(:elixir, place) do
    {:ok, pid} = Agent.start_link(fn -> %{regions: %{}, place: place} end)
    {:elixir, pid}
  end

  def start(:python, place), do: {:python, open(python(), [Path.join(__DIR__, "peer.py")], place)}
  def start(:rust, place), do: {:rust, open(rust(), [], place)}

  @doc "Ends it and waits until it has ended."
  def stop({:elixir, pid}), do: Agent.stop(pid)

  def stop({_language, port}) do
    Port.command(port, JSON.encode(%{op: "stop"}) <> "\n")

    receive do
      {^port, {:exit_status, 0}} -> :ok
      {^port, {:exit_status, status}} -> raise "a peer ended with status #{status}"
    after
      @patience -> raise "a peer does not end"
    end
  end

  @doc "Asks and waits for the answer."
  def ask(peer, op, fields \\ %{}), do: peer |> send_request(op, fields) |> answer()

  @doc "Asks without waiting: for a peer that is to wait for another one."
  def send_request({:elixir, pid}, op, fields) do
    {:elixir,
     Task.async(fn -> Agent.get_and_update(pid, &perform(op, fields, &1), @patience) end)}
  end

  def send_request({_language, port} = peer, op, fields) do
    fields = Map.new(fields, fn {key, value} -> {key, to_json(key, value)} end)
    Port.command(port, JSON.encode(Map.put(fields, :op, op)) <> "\n")
    peer
  end

  @doc "The answer to a request that was sent."
  def answer({:elixir, %Task{} = task}), do: Task.await(task, @patience)

  def answer({language, port}), do: collect(language, port, "")

  defp collect(language, port, begun) do
    receive do
      {^port, {:data, {:noeol, part}}} -> collect(language, port, begun <> part)
      {^port, {:data, {:eol, part}}} -> from_json(begun <> part)
      {^port, {:exit_status, status}} -> raise "the #{language} peer ended with status #{status}"
    after
      @patience -> raise "the #{language} peer does not answer"
    end
  end

  defp to_json(:data, bytes), do: Base.encode16(bytes)
  defp to_json(_key, value), do: value

  defp from_json(line) do
    {:ok, answer} = JSON.decode(line)

    case answer do
      %{"data" => digits} -> %{answer | "data" => Base.decode16!(digits, case: :lower)}
      answer -> answer
    end
  end

  # --- the processes ---

  defp open(program, args, place) do
    Port.open({:spawn_executable, program}, [
      :binary,
      :exit_status,
      line: 65_536,
      args: args ++ [place[:namespace], place[:dir]]
    ])
  end

  defp python, do: System.get_env("SNAKEPIT_PYTHON") || Path.join(@root, ".venv/bin/python")

  @doc "Builds the Rust peer; where its program is."
  def rust do
    target = System.get_env("CARGO_TARGET_DIR") || Path.join(@root, "target")
    manifest = Path.join(__DIR__, "peer/Cargo.toml")
    # The versions that the workspace is built with.
    File.cp!(Path.join(@root, "Cargo.lock"), Path.join(__DIR__, "peer/Cargo.lock"))
    args = ["build", "--quiet", "--manifest-path", manifest, "--target-dir", target]
    {output, status} = System.cmd("cargo", args, stderr_to_stdout: true)
    if status != 0, do: raise("the Rust peer does not build:\n#{output}")
    Path.join(target, "debug/interop-peer")
  end

  # --- Elixir's own side ---

  defp perform(op, fields, %{place: place} = state) do
    {answer, regions} = perform(op, fields, place, state.regions)
    {answer, %{state | regions: regions}}
  end

  defp perform("create", %{name: name, size: size, slots: slots}, place, regions) do
    {said(SHM.allocate_region(size, [name: name, slots: slots] ++ place), fn _ -> %{} end),
     regions}
  end

  defp perform("write", %{name: name, data: data} = fields, place, regions) do
    opts = fields |> Map.take([:dtype, :shape]) |> Map.to_list()

    {said(
       SHM.write(regions[name] || name, data, opts ++ place_of(regions[name], place)),
       &version/1
     ), regions}
  end

  defp perform("write_at", %{name: name, data: data, offset: offset}, place, regions) do
    opts = [offset: offset] ++ place_of(regions[name], place)
    {said(SHM.write(regions[name] || name, data, opts), &version/1), regions}
  end

  defp perform("seal", %{name: name}, place, regions) do
    {said(SHM.seal(regions[name] || name, place_of(regions[name], place)), fn _ -> %{} end),
     regions}
  end

  defp perform("share", %{data: data} = fields, place, regions) do
    opts = fields |> Map.take([:name, :dtype, :shape]) |> Map.to_list()
    {said(SHM.share(data, opts ++ place), &%{"handle" => &1}), regions}
  end

  defp perform("end", %{name: name}, place, regions) do
    {said(SHM.deallocate_region(name, place), fn _ -> %{} end), regions}
  end

  defp perform("attach", %{name: name}, place, regions) do
    map(SHM.map_region(name, [access_mode: :read_only] ++ place), name, regions)
  end

  defp perform("take_over", %{name: name}, place, regions) do
    map(SHM.map_region(name, [access_mode: :read_write] ++ place), name, regions)
  end

  defp perform("read", %{name: name}, place, regions) do
    data = SHM.read(regions[name])

    {said(data, fn data ->
       {:ok, info} = SHM.get_region_info(name, place)
       %{"data" => data, "version" => info.version}
     end), regions}
  end

  # What an application does: it is told of the change by a message.
  defp perform("wait", %{name: name, since: since}, _place, regions) do
    ref = SHM.subscribe!(regions[name], since: since, active: :once)

    version =
      receive do
        {:snakepit_shm, ^ref, {:changed, ^name, version}} -> version
      after
        20_000 -> raise "no notice of a change"
      end

    SHM.unsubscribe!(ref)
    {%{"version" => version}, regions}
  end

  defp perform(op, %{name: name}, _place, regions) when op in ["detach", "hand_over"] do
    {said(SHM.unmap_region(regions[name]), fn _ -> %{} end), Map.delete(regions, name)}
  end

  defp perform("resolve", %{handle: handle}, place, regions) do
    {said(SHM.fetch(handle, dir: place[:dir]), fn data ->
       %{"data" => :binary.copy(data), "dtype" => handle["dtype"], "shape" => handle["shape"]}
     end), regions}
  end

  defp map({:ok, region}, name, regions), do: {%{}, Map.put(regions, name, region)}
  defp map(error, _name, regions), do: {said(error, & &1), regions}

  # A held mapping knows its place.
  defp place_of(nil, place), do: place
  defp place_of(_region, _place), do: []

  defp said({:ok, value}, fun), do: fun.(value)

  defp said({:error, error}, _fun),
    do: %{"error" => Atom.to_string(error.code), "message" => error.message}

  defp version(version), do: %{"version" => version}
end
