# A pool of Python workers with values by handle: real work, a stream, workers killed in the middle, and what it
# costs beside JSON and a pipe.
#
#     mix run --no-start run.exs            (make example, from the root of the repository)
#
# EXAMPLE_LARGEST=10 measures up to 10 MB instead of 100; EXAMPLE_QUICK=1 makes all of it small, and EXAMPLE_OUT names
# another folder for the plot: for tests.

quick? = System.get_env("EXAMPLE_QUICK") == "1"
out = System.get_env("EXAMPLE_OUT") || "plots"
python = System.get_env("SNAKEPIT_PYTHON") || Path.expand("../../.venv/bin/python")

# A namespace of its own: whatever else uses shared memory on this machine is neither seen nor touched. What a killed
# worker had given away and nobody took goes after a second.
namespace = "workers-#{System.pid()}"
Application.put_env(:snakepit, :shared_memory, namespace: namespace, grace: 1_000)
Logger.configure(level: :error)
{:ok, _} = Application.ensure_all_started(:workers)

alias Snakepit.SharedMemory
alias Snakepit.SharedMemory.Bridge
alias Workers.{Measure, Mishaps, Work}

# In a process of its own, so that its binaries end with it, and the memory under them.
section = fn title, work ->
  IO.puts("\n#{title}\n")
  work |> Task.async() |> Task.await(:infinity)
end

check = fn name, right? ->
  unless right?, do: raise("not so: #{name}")
  IO.puts("  ok  #{name}")
end

section.("1. Real work on real data, by three ways with one result", fn ->
  for {tool, title} <- [blur: "a batch of pictures", spectrum: "signals", aggregate: "a table"] do
    work = Work.new("#{tool}", 2_000_000)
    [{:ok, result} | others] = for way <- Work.ways(), do: Work.run(work, way)
    same? = Enum.all?(others, &(&1 == {:ok, result}))

    check.(
      "#{tool} of #{title}: #{byte_size(work.data)} bytes in, #{byte_size(result)} out",
      same?
    )
  end

  # Computed here as well: a pixel's mean, the tones' places, and the sums.
  pictures = Work.new("blur", 600_000)
  {:ok, blurred} = Work.run(pictures, :handle)
  at = fn picture, y, x -> :binary.at(picture, (y * 480 + x) * 3) end
  nine = for y <- 99..101, x <- 199..201, do: at.(pictures.data, y, x)
  check.("a blurred pixel is the mean of nine", at.(blurred, 100, 200) == div(Enum.sum(nine), 9))

  signals = Work.new("spectrum", 320_000)
  {:ok, spectrum} = Work.run(signals, :handle)
  channel = div(byte_size(spectrum), 8)
  <<first::binary-size(channel), _::binary>> = spectrum
  magnitudes = for <<m::float-32-little <- first>>, do: m
  check.("the tone of channel 0 has one period", Enum.at(magnitudes, 1) == Enum.max(magnitudes))

  # A table stays where it is: a handle goes from worker to worker.
  {:ok, sales} =
    Bridge.execute("make_sales", %{rows: 100_000, seed: 4}, via: Workers, resolve: false)

  {:ok, sums} = Bridge.execute("aggregate", %{sales: sales}, via: Workers, resolve: false)
  {:ok, rows} = Bridge.execute("rows", %{table: sums}, via: Workers)

  check.(
    "fifty shops have 100,000 sales",
    Enum.sum(Enum.map(rows, & &1["price_count"])) == 100_000
  )

  for handle <- [sales, sums], do: SharedMemory.deallocate_region!(handle)

  bytes = <<0, 255, 254>> <> :rand.bytes(200_000)

  check.(
    "bytes come back as the same bytes",
    Bridge.execute("echo", %{value: bytes}, via: Workers) == {:ok, bytes}
  )

  text = String.duplicate("Grüße ", 50_000)
  check.("and text as text", Bridge.execute("echo", %{value: text}, via: Workers) == {:ok, text})
end)

unless quick? do
  section.("   and a large one", fn ->
    {:ok, large} = Bridge.execute("zeros", %{bytes: 500_000_000}, via: Workers)
    check.("a result of 500 MB comes back", byte_size(large) == 500_000_000)
  end)
end

section.("2. A stream of pictures, one a chunk", fn ->
  pictures = Work.new("blur", 2_000_000)
  {:ok, blurred} = Work.run(pictures, :pipe)
  me = self()
  batch = Bridge.value(pictures.data, pictures.options)
  each = fn chunk -> send(me, {:chunk, chunk["picture"]}) end
  :ok = Bridge.execute_stream("blur_each", %{pictures: batch}, each, via: Workers)

  received =
    for _ <- 1..hd(pictures.options[:shape]), do: receive(do: ({:chunk, picture} -> picture))

  check.("together they are the batch", IO.iodata_to_binary(received) == blurred)
end)

section.("3. Workers killed in the middle", fn ->
  {failed, retried} = Mishaps.killed_tool()

  check.(
    "the caller of a killed worker gets an error",
    match?({:error, {:worker_died, _}}, failed)
  )

  check.("or the result, where it may be tried again", retried == {:ok, %{"sum" => 3_000_000}})

  {:error, message} =
    Bridge.execute("fail", %{values: Bridge.value(<<1>>, dtype: :u8)}, via: Workers)

  check.("a tool's own error is told", message =~ "nothing useful")
  # In a directory that the workers do not look into.
  elsewhere = "/dev/shm/#{namespace}-elsewhere"
  File.mkdir!(elsewhere)
  text = String.duplicate("plainly ", 50_000)
  plainly = Bridge.execute("length", %{value: text}, via: Workers, dir: elsewhere)
  check.("what a worker cannot resolve is sent again in JSON", plainly == {:ok, 400_000})
  check.("a job that does not end is given up", Mishaps.given_up() == {:error, :timeout})
  jobs = if quick?, do: 60, else: 100
  counts = Mishaps.killed_at_random(jobs)

  check.(
    "#{jobs} jobs, #{counts.killed} workers killed at random: all right",
    counts.right == jobs and counts.killed > 0
  )

  # The binaries of this script are not regions any more, and what workers left was given back.
  check.("no region is left of all that", Mishaps.regions() == [])
  File.rm_rf!(elsewhere)
end)

section.("4. The same work by handles, through a pipe, and in JSON", fn ->
  # In a few sizes up to the largest, in MB.
  largest = String.to_integer(System.get_env("EXAMPLE_LARGEST") || "100")
  sizes = for mb <- [1, 3, 10, 30, 100], mb <= largest, do: mb * 1_000_000

  plan =
    if quick?,
      do: [{"negative", [1_000_000]}, {"blur", [1_000_000]}],
      else: for(tool <- ~w(negative blur spectrum aggregate), do: {tool, sizes})

  rounds = if quick?, do: 2, else: 3
  measured = Measure.run(plan, rounds)
  Measure.print(measured)

  IO.puts("""

    Medians of #{rounds}, from the data in Elixir to a result of which every byte was compared. JSON is that of the demo, in Elixir,
    and base64 of OTP; Python's json and base64 are those of its library.\
  """)

  Measure.plot(measured, Path.join(out, "workers"), python)
  IO.puts("  Drawn: #{Path.join(out, "workers")}.svg and .png")
end)

:ok = Application.stop(:workers)
:ok = Application.stop(:snakepit_shared_memory)

IO.puts("\n5. What is left in /dev/shm\n")

case Demo.Leftovers.of("/dev/shm", namespace) do
  [] ->
    IO.puts("  nothing")

  files ->
    IO.puts(:stderr, "example: left behind: #{Enum.join(files, ", ")}")
    System.halt(1)
end
