defmodule Snakepit.SharedMemory do
  @moduledoc """
  Shared memory between the BEAM and other processes of the machine, without a copy.

  A **region** is a named piece of shared memory with one writer and any number of readers, in
  this VM, in Python (`snakepit_shm`) or in Rust (`snakepit-shm`). Bulk bytes never pass through a
  process mailbox, a pipe or JSON: only a small handle does.

  ## Handing a value over

  `share/2` puts bytes into a region that can never change again and answers a handle, a map that
  survives JSON. `fetch/2` turns a handle into a binary that lies on the shared memory itself:

      iex> alias Snakepit.SharedMemory
      iex> {:ok, handle} = SharedMemory.share(<<1.0::float-32-little, 2.0::float-32-little>>, dtype: :f32)
      iex> {handle["dtype"], handle["shape"], handle["bytes"]}
      {"<f4", [2], 8}
      iex> {:ok, binary} = SharedMemory.fetch(handle)
      iex> binary
      <<1.0::float-32-little, 2.0::float-32-little>>
      iex> {:ok, _id} = SharedMemory.deallocate_region(handle)

  In Python, `snakepit_shm.resolve(handle)` is the same value as a numpy array, also without a copy.

  ## A value that changes

      iex> alias Snakepit.SharedMemory
      iex> {:ok, id} = SharedMemory.allocate_region(4096)
      iex> {:ok, ref} = SharedMemory.subscribe(id)
      iex> {:ok, version} = SharedMemory.write(id, ["21.5", ?\\s, "C"])
      iex> receive do
      ...>   {:snakepit_shm, ^ref, {:changed, ^id, ^version}} -> SharedMemory.read!(id)
      ...> end
      "21.5 C"
      iex> {:ok, ^id} = SharedMemory.deallocate_region(id)

  Readers never wait for the writer and the writer never waits for readers.

  ## What a region is called

  Where a function takes a region it takes an id (a string), a `%Snakepit.SharedMemory.Region{}` that
  `map_region/2` returned (fastest: no lookup), or a handle. An id may also name a region of
  another OS process in the same namespace; reading one repeatedly is what `map_region/2` is for.

  ## Who owns what

  The process that allocates a region owns it, unless it names another: when the owner dies the
  region is removed, unless its `:cleanup_policy` says otherwise. A region may have a `:timeout` too, and
  belong to a session or a worker that is released. What a process has mapped is given back when it dies. Binaries from
  `binary/2` and `fetch/2` stay valid however the region ends; their memory goes when the last of
  them is garbage-collected.

  ## Answers

  Every function answers `{:ok, _}` or `{:error, %Snakepit.SharedMemory.Error{}}` and has a twin with
  `!` that returns the value or raises the error. Options are keyword lists or maps. All functions
  that take a region also take `:namespace` and `:dir`, for regions outside the configured ones.

  ## How long a call may take

  No call waits for ever, and none exits. One that needs this library's own processes, or file work
  that they have done (allocating, sharing, mapping, unmapping, deallocating, and the first read of
  a region by its id), answers an error with code `:timeout` after `:call_timeout` of the
  configuration; what it asked for is then not done, or undone. The lock that serialises creation and
  removal in a namespace is waited for 5 s at most. A write waits for the write of another process of
  this VM that is under way, one copy long. `with_writer/3` and `health_check/1` take a `:timeout`.

  See `Snakepit.SharedMemory.Config` for the configuration and `Snakepit.SharedMemory.Telemetry` for the
  events.
  """

  alias Snakepit.SharedMemory.{
    Adoption,
    Cleanup,
    Error,
    Exchange,
    Exclusive,
    Health,
    History,
    Inspection
  }

  alias Snakepit.SharedMemory.{
    Lifecycle,
    Pool,
    Reading,
    Recommendations,
    Reconfiguration,
    Recorder
  }

  alias Snakepit.SharedMemory.Region

  alias Snakepit.SharedMemory.{
    Batch,
    Buffer,
    Fetching,
    Lending,
    Sessions,
    Stats,
    Subscription,
    Writing
  }

  @typedoc "A region's id: its name in shared memory, 1 to 128 of `A-Z a-z 0-9 . _ -`."
  @type id :: String.t()

  @typedoc "A sealed value, named by a JSON-safe map with string keys."
  @type handle :: %{required(String.t()) => term()}

  @typedoc "What names a region."
  @type region :: id() | Region.t() | handle()

  @typedoc "Options, as a keyword list or a map with atom keys."
  @type options :: keyword() | %{optional(atom()) => term()}

  @typedoc "Even, and 2 more with every write; 0 before the first."
  @type version :: non_neg_integer()

  @type result(value) :: {:ok, value} | {:error, Error.t()}

  # -- life of a region -----------------------------------------------------------------------

  @doc """
  Creates a region that holds values of up to `size` bytes and answers its id.

  `size` is 4 KiB to 1 GiB and a multiple of the page size.

  Options:

    * `:name` - the id. Default: generated, `shm_<time>_<random>`
    * `:owner` - pid of this node whose death removes the region. Default: the caller
    * `:metadata` - a map for `get_region_info/2` to show. It stays in this VM
    * `:cleanup_policy` - when the region goes by itself. `:automatic`: with its owner. `:manual`:
      never; it belongs to the node once its owner has died, and goes when that stops.
      `:reference_counted`: when nobody refers to it any more, see
      `Snakepit.SharedMemory.ReferenceCounter`. Default: `:automatic`
    * `:timeout` - milliseconds without use after which the region is removed, whatever its policy;
      `nil` is never. Used is what is mapped, read, written, or fetched in this VM, and what another OS
      process has attached; it goes between one and one and a half times the timeout after that.
      Default: `:default_timeout` of the configuration, also when that is changed later
    * `:access_mode` - what `map_region/2` gives where it is not told: `:read_only` or `:read_write`
    * `:session`, `:worker` - ids that it belongs to, see `release_session/2` and `release_worker/2`
    * `:tags` - a list of strings, for `list_regions/1` to find it by
    * `:slots` - 1 to 64 values kept at once. With two or more, readers always find a complete
      value. Default: 4 up to 1 MiB, 2 above
    * `:max_readers` - room in the table of OS-level readers, 1 to 16,384. Default: 1,024
    * `:integrity` - `:crc32c` adds a checksum that every read checks. Default: `:none`
    * `:notify` - `false` makes writes a little cheaper and `subscribe/2` impossible. Default: `true`
    * `:timestamps` - `:off`, `:coarse` (1 to 10 ms) or `:precise`. Default: `:coarse`
    * `:reserve` - `:eager` takes the memory now, `:lazy` when it is touched. Default: `:eager`
    * `:huge_pages` - `:prefer` takes as many huge pages (2 MiB) as are to be had, and `get_region_info/2`
      with `pages: true` says how many; `:require` or `true` refuses the region without them: with code
      `:invalid_option` where there can be none, `:resource_exhausted` where free memory lies in pieces too
      small. Default: `:prefer` with `use_hugepages: true` in the configuration, else `false`
    * `:prefault` - `true` maps the pages now rather than when each is first written; not with `reserve: :lazy`.
      Default: `false`
    * `:lock_memory` - `true` locks it in memory; refused with `:resource_exhausted` beyond RLIMIT_MEMLOCK.
      Default: `false`
    * `:numa` - a node, a list of nodes, `:interleave` or `{:interleave, nodes}`: where the pages come from.
      A node that is not there is refused with `:invalid_option`. Default: `nil`, as the kernel does it
    * `:permissions` - a map with `:group` and `:other`, each `:read_write`, `:read_only` or `:none`, and
      `:owner`, which always is `:read_write`; or the mode of the files that says the same, such as
      `0o640`. Default: `0o600`
    * `:security_level` - `:standard`. `:high` and `:maximum` are not there yet and refused, with code
      `:unsupported`
    * `:schema_id` - 64 bits that tell layouts of the value apart. Default: 0

      iex> {:ok, id} = Snakepit.SharedMemory.allocate_region(8192, name: "doc-allocate", slots: 2)
      iex> id
      "doc-allocate"
      iex> {:error, error} = Snakepit.SharedMemory.allocate_region(8192, name: "doc-allocate")
      iex> error.code
      :already_exists
      iex> {:error, error} = Snakepit.SharedMemory.allocate_region(5000)
      iex> error.remedy
      "ask for 8192 bytes"
      iex> {:ok, _} = Snakepit.SharedMemory.deallocate_region("doc-allocate")
  """
  @spec allocate_region(pos_integer(), options()) :: result(id())
  def allocate_region(size, opts \\ []), do: noted(Lifecycle.allocate(size, opts))

  @doc "Like `allocate_region/2`, but returns the id or raises."
  @spec allocate_region!(pos_integer(), options()) :: id()
  def allocate_region!(size, opts \\ []), do: bang(allocate_region(size, opts))

  @doc """
  Makes a region that another OS process left behind one of this VM, and answers its id.

  A region is left behind, `:orphaned`, when the process that wrote it has died or given it up. It then
  waits for its grace (`:grace` of the configuration) and is removed, unless somebody takes it over.
  An adopted region is from then on like one that was allocated here: it has an owner, counts for
  the limits, and goes with its owner or as its policy says. Its value stays, and versions go
  on. One that is sealed stays as it is, and handles to it stay valid.

  Options are those of `allocate_region/2` that do not concern the shared memory itself: `:owner`, `:metadata`,
  `:cleanup_policy`, `:timeout`, `:access_mode`, `:session`, `:worker` and `:tags`. The region's name, size,
  slots and permissions stay, and what the other process had noted of it has gone with that process.

  Refused with `:segment_busy` while a living process writes the region, this VM included: of several who
  adopt it at once, one has it. To write a region without owning it, see `map_region/2`.

  An application that crashed finds what it had, when it starts again:

      iex> alias Snakepit.SharedMemory
      iex> adopted =
      ...>   for region <- SharedMemory.list_regions!(orphaned: true) do
      ...>     SharedMemory.adopt_region!(region.id, cleanup_policy: :manual)
      ...>   end
      iex> adopted
      []
      iex> id = SharedMemory.allocate_region!(4096)
      iex> {:error, error} = SharedMemory.adopt_region(id)
      iex> error.code
      :segment_busy
      iex> SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec adopt_region(region(), options()) :: result(id())
  def adopt_region(region, opts \\ []), do: noted(Adoption.adopt(region, opts))

  @doc "Like `adopt_region/2`, but returns the id or raises."
  @spec adopt_region!(region(), options()) :: id()
  def adopt_region!(region, opts \\ []), do: bang(adopt_region(region, opts))

  @doc """
  Maps a region into this VM for the calling process, until it unmaps it or dies.

  Options:

    * `:access_mode` - `:read_only` or `:read_write`. Default: what is possible without taking
      anything from anybody: `:read_write` for regions of this VM, `:read_only` for others.
      `:read_write` on another's region takes its writer's place, and is refused (`:segment_busy`)
      while there is one. That place is given up again with the mapping; `adopt_region/2` keeps it
    * `:prefault` - `true` maps all pages that are there now, rather than each when it is first read; a
      region that is reserved lazily keeps its holes. Default: `false`
    * `:lock_memory` - `true` locks the mapping in memory, as in `allocate_region/2`. Default: `false`

  With one of the last two the mapping is one of its own, also of a region of this VM.

      iex> id = Snakepit.SharedMemory.allocate_region!(4096)
      iex> {:ok, region} = Snakepit.SharedMemory.map_region(id)
      iex> {region.size, region.access_mode}
      {4096, :read_write}
      iex> {:ok, 2} = Snakepit.SharedMemory.write(region, "mapped")
      iex> Snakepit.SharedMemory.read!(region)
      "mapped"
      iex> {:ok, ^id} = Snakepit.SharedMemory.unmap_region(region)
      iex> {:error, error} = Snakepit.SharedMemory.read(region)
      iex> error.code
      :closed
      iex> {:ok, ^id} = Snakepit.SharedMemory.deallocate_region(id)
  """
  @spec map_region(region(), options()) :: result(Region.t())
  def map_region(region, opts \\ []), do: noted(Lifecycle.map(region, opts))

  @doc "Like `map_region/2`, but returns the mapping or raises."
  @spec map_region!(region(), options()) :: Region.t()
  def map_region!(region, opts \\ []), do: bang(map_region(region, opts))

  @doc """
  Gives back a mapping of the calling process; given an id, one of its mappings of that region.

  Binaries from `binary/2` stay valid.
  """
  @spec unmap_region(region(), options()) :: result(id())
  def unmap_region(region, opts \\ []), do: noted(Lifecycle.unmap(region, opts))

  @doc "Like `unmap_region/2`, but returns the id or raises."
  @spec unmap_region!(region(), options()) :: id()
  def unmap_region!(region, opts \\ []), do: bang(unmap_region(region, opts))

  @doc """
  Removes a region, whoever owns it.

  Nobody finds it any more; those who have it mapped keep what they have and are told that it is
  closed. Given a handle, only that very region is removed, not a later one of the same name.

      iex> id = Snakepit.SharedMemory.allocate_region!(4096)
      iex> Snakepit.SharedMemory.deallocate_region(id) == {:ok, id}
      true
      iex> {:error, error} = Snakepit.SharedMemory.deallocate_region(id)
      iex> error.code
      :not_found
  """
  @spec deallocate_region(region(), options()) :: result(id())
  def deallocate_region(region, opts \\ []), do: noted(Lifecycle.deallocate(region, opts))

  @doc "Like `deallocate_region/2`, but returns the id or raises."
  @spec deallocate_region!(region(), options()) :: id()
  def deallocate_region!(region, opts \\ []), do: bang(deallocate_region(region, opts))

  # -- bytes in and out -----------------------------------------------------------------------

  @doc """
  Publishes a value and answers its version.

  `data` is iodata of 1 byte up to the region's size; it is written as it is, without flattening.

  Options:

    * `:offset` - publishes the previous value with `data` patched in there, perhaps extended by it
    * `:dtype`, `:shape` - describe an array, see `Snakepit.SharedMemory.Dtype`. Default of `:shape`:
      one dimension
    * `:format` - `:raw`, `:numpy` or `:arrow_ipc`. Default: `:numpy` with a dtype, else `:raw`

      iex> id = Snakepit.SharedMemory.allocate_region!(4096)
      iex> Snakepit.SharedMemory.write(id, ["hello", [?\\s | "world"]])
      {:ok, 2}
      iex> Snakepit.SharedMemory.write(id, "there", offset: 6)
      {:ok, 4}
      iex> Snakepit.SharedMemory.read(id)
      {:ok, "hello there"}
      iex> Snakepit.SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec write(region(), iodata(), options()) :: result(version())
  def write(region, data, opts \\ []), do: noted(Writing.write(region, data, opts))

  @doc "Like `write/3`, but returns the version or raises."
  @spec write!(region(), iodata(), options()) :: version()
  def write!(region, data, opts \\ []), do: bang(write(region, data, opts))

  @doc """
  Copies the current value into a binary.

  Options:

    * `:offset`, `:length` - only that part. Default: to the end of the value
    * `:max_age` - milliseconds; an older value is an error with code `:stale`

      iex> id = Snakepit.SharedMemory.allocate_region!(4096)
      iex> {:error, %{code: :empty}} = Snakepit.SharedMemory.read(id)
      iex> Snakepit.SharedMemory.write!(id, "temperature")
      iex> Snakepit.SharedMemory.read(id, offset: 4, length: 3)
      {:ok, "era"}
      iex> {:ok, "temperature"} = Snakepit.SharedMemory.read(id, max_age: 60_000)
      iex> Snakepit.SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec read(region(), options()) :: result(binary())
  def read(region, opts \\ []), do: noted(Reading.read(region, opts))

  @doc "Like `read/2`, but returns the binary or raises."
  @spec read!(region(), options()) :: binary()
  def read!(region, opts \\ []), do: bang(read(region, opts))

  @doc """
  Memory to read large values into again and again: see `Snakepit.SharedMemory.Buffer` and `read_into/3`.

  `size` is the length of the longest value, in bytes.

  Options:

    * `:copies` - values that can be held at a time, 1 to 64. Default: 4
  """
  @spec buffer(pos_integer(), options()) :: result(Buffer.t())
  def buffer(size, opts \\ []), do: noted(Buffer.new(size, opts))

  @doc "Like `buffer/2`, but returns the buffer or raises."
  @spec buffer!(pos_integer(), options()) :: Buffer.t()
  def buffer!(size, opts \\ []), do: bang(buffer(size, opts))

  @doc """
  Copies the current value into memory of a buffer, as a binary that never changes.

  For values of a megabyte and more, read often: a new binary of that length costs more than the copy.
  A value that is longer than the buffer's `:size`, or that comes while all its `:copies` are in use,
  becomes a binary of its own. Takes the options of `read/2`, without `:offset` and `:length`.

      iex> id = Snakepit.SharedMemory.allocate_region!(4096)
      iex> Snakepit.SharedMemory.write!(id, "frame 1")
      iex> buffer = Snakepit.SharedMemory.buffer!(4096)
      iex> {:ok, first} = Snakepit.SharedMemory.read_into(id, buffer)
      iex> Snakepit.SharedMemory.write!(id, "frame 2")
      iex> {Snakepit.SharedMemory.read_into!(id, buffer), first}
      {"frame 2", "frame 1"}
      iex> Snakepit.SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec read_into(region(), Buffer.t(), options()) :: result(binary())
  def read_into(region, buffer, opts \\ []), do: noted(Buffer.read(region, buffer, opts))

  @doc "Like `read_into/3`, but returns the binary or raises."
  @spec read_into!(region(), Buffer.t(), options()) :: binary()
  def read_into!(region, buffer, opts \\ []), do: bang(read_into(region, buffer, opts))

  @doc """
  Reads many regions in one call: `read/2` of each, in order, with its own answer.

  A call into the library costs as much as a small read; here all mappings, and all regions that were
  read by id before, together cost one. Takes the options of `read/2`, for all of them; with an option
  they are read one by one. What is not a list, or an unknown option, is an error of the whole.

      iex> [a, b] = for _ <- 1..2, do: Snakepit.SharedMemory.allocate_region!(4096)
      iex> Snakepit.SharedMemory.write_many([{a, "left"}, {b, ["ri", "ght"]}])
      {:ok, [ok: 2, ok: 2]}
      iex> Snakepit.SharedMemory.read_many([a, b])
      {:ok, [ok: "left", ok: "right"]}
      iex> {:ok, [{:ok, "left"}, {:error, error}]} = Snakepit.SharedMemory.read_many([a, "no-such"])
      iex> error.code
      :not_found
      iex> Enum.each([a, b], &Snakepit.SharedMemory.deallocate_region!/1)
      :ok
  """
  @spec read_many([region()], options()) :: result([result(binary())])
  def read_many(regions, opts \\ []), do: each_noted(Batch.read(regions, opts))

  @doc "Like `read_many/2`, but returns the binaries, or raises the first error."
  @spec read_many!([region()], options()) :: [binary()]
  def read_many!(regions, opts \\ []), do: each_bang(read_many(regions, opts))

  @doc """
  Publishes many values in one call: `write/3` of each `{region, data}`, in order, with its own answer.

  Takes the options of `write/3`, for all of them; with an option they are written one by one. An error of
  one does not keep the others from being written.

      iex> id = Snakepit.SharedMemory.allocate_region!(4096)
      iex> {:ok, [ok: 2, error: error]} = Snakepit.SharedMemory.write_many([{id, "value"}, {id, ""}])
      iex> error.code
      :out_of_bounds
      iex> Snakepit.SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec write_many([{region(), iodata()}], options()) :: result([result(version())])
  def write_many(values, opts \\ []), do: each_noted(Batch.write(values, opts))

  @doc "Like `write_many/2`, but returns the versions, or raises the first error; the others are written."
  @spec write_many!([{region(), iodata()}], options()) :: [version()]
  def write_many!(values, opts \\ []), do: each_bang(write_many(values, opts))

  @doc """
  Makes the current value the last one: a sealed region can never be written again.

  Answers the version of that value. Only sealed regions have handles and zero-copy binaries.
  """
  @spec seal(region(), options()) :: result(version())
  def seal(region, opts \\ []), do: noted(Writing.seal(region, opts))

  @doc "Like `seal/2`, but returns the version or raises."
  @spec seal!(region(), options()) :: version()
  def seal!(region, opts \\ []), do: bang(seal(region, opts))

  @doc """
  The value of a region as a binary on the shared memory itself: no byte is copied.

  The mapping goes when the binary and all its sub-binaries have been garbage-collected. Copy
  (`:binary.copy/1`) the small part of a large value that you mean to keep for long.

  Options:

    * `:pin` - `true` for a region that is still written: the writer passes the value's slot over until
      the binary has been garbage-collected. Of n slots n - 2 can be pinned at a time, by all readers of the
      region in all processes, and one by each mapping; beyond that the value is copied. Default:
      `false`, for sealed regions only

      iex> id = Snakepit.SharedMemory.allocate_region!(4096, slots: 1)
      iex> Snakepit.SharedMemory.write!(id, "for ever")
      iex> {:error, %{code: :not_sealed}} = Snakepit.SharedMemory.binary(id)
      iex> Snakepit.SharedMemory.seal!(id)
      iex> Snakepit.SharedMemory.binary(id)
      {:ok, "for ever"}
      iex> Snakepit.SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec binary(region(), options()) :: result(binary())
  def binary(region, opts \\ []), do: noted(Exchange.binary(region, opts))

  @doc "Like `binary/2`, but returns the binary or raises."
  @spec binary!(region(), options()) :: binary()
  def binary!(region, opts \\ []), do: bang(binary(region, opts))

  @doc """
  Puts `data` into a sealed region of its own and answers a handle to it.

  `data` is

    * iodata, written into the region piece by piece without building a binary of it
    * a tensor, when `Nx` is loaded: its element type and shape go with it
    * `{:file, path}`, read straight into the region
    * `{:stream, enumerable}` of iodata. `:size` are the most bytes that it has; without it the region grows as
      the stream goes on, each byte may be copied twice, and the region takes up to twice the memory

  The caller owns the region, unless `:owner` says otherwise: it stays until the owner dies or
  `deallocate_region/2` is called with the handle. Options are those of `allocate_region/2` but
  `:slots`, `:notify` and `:max_readers`, and `:dtype`, `:shape` and `:format` as in `write/3`; and

    * `:ttl` - milliseconds after which the region is removed if nobody has used it since, counted from when it has its
      value: `:timeout` by the name that it has for results
    * `:size` - of a stream, see above

  Because it is filled at once, `:prefault` is `true` from 1 MiB on, and `:huge_pages` `:prefer` from 4 MiB on,
  unless they are given or memory is reserved lazily.

      iex> alias Snakepit.SharedMemory
      iex> {:ok, handle} = SharedMemory.share(["any ", "iodata"])
      iex> SharedMemory.fetch!(handle)
      "any iodata"
      iex> SharedMemory.deallocate_region!(handle) == handle["name"]
      true
      iex> handle = SharedMemory.share!({:stream, Stream.map(1..4, &<<&1>>)}, dtype: :u8)
      iex> {handle["shape"], SharedMemory.fetch!(handle)}
      {[4], <<1, 2, 3, 4>>}
      iex> SharedMemory.deallocate_region!(handle) == handle["name"]
      true
  """
  @spec share(iodata() | {:file, Path.t()} | {:stream, Enumerable.t()} | struct(), options()) ::
          result(handle())
  def share(data, opts \\ []), do: noted(Exchange.share(data, opts))

  @doc "Like `share/2`, but returns the handle or raises."
  @spec share!(iodata() | {:file, Path.t()} | {:stream, Enumerable.t()} | struct(), options()) ::
          handle()
  def share!(data, opts \\ []), do: bang(share(data, opts))

  @doc """
  The value that a handle names, as a binary on the shared memory itself.

  `handle` is the map as `share/2` returned it or as it came from Python and was decoded from JSON,
  with string keys. A handle that was tampered with, or whose region is gone or another, is an error. The bytes of an array that its maker
  holds in Fortran's order come as they lie, which the handle says (`"order" => "F"`).

    * `:as` - `:binary` (default), or `:tensor`: by `Nx.from_binary/3` and `Nx.reshape/2`, which copy nothing on
      Nx's own backend. `:unsupported` when `Nx` is not loaded, or has no type for the elements
    * `:into` - what the value is copied to instead: a `buffer/2` (the answer is a binary in it), or a region that this
      node may write, by id or mapping, with what the handle says of the value (the answer is the version)
    * `:adopt` - whether the region becomes one of this VM, owned by the caller. Default: if its maker has given it
      away (Python: `share(obj, transfer=True)`) and nobody has taken it. `false` leaves it to its time to live,
      `true` takes what was merely left behind, too, as `adopt_region/2` does

  An adopted region counts for the limits and goes with its owner, by `deallocate_region/2`, or as `:owner`,
  `:cleanup_policy`, `:timeout`, `:session`, `:worker`, `:metadata` and `:tags` say; they are those of
  `adopt_region/2`. When a limit refuses it, the answer is that error, and the region waits on. What was given away and
  is copied by `:into` is removed at once, unless somebody has taken it meanwhile. Binaries and tensors stay valid, however the
  region ends; a part of one keeps the memory of all of it.
  """
  @spec fetch(handle(), options()) :: result(binary() | struct() | version())
  def fetch(handle, opts \\ []), do: noted(Fetching.fetch(handle, opts))

  @doc "Like `fetch/2`, but returns the value or raises."
  @spec fetch!(handle(), options()) :: binary() | struct() | version()
  def fetch!(handle, opts \\ []), do: bang(fetch(handle, opts))

  @doc """
  Lends a region of this VM to another OS process, which fills it in place.

  The answer is a loan, a map that survives JSON. In Python `with snakepit_shm.borrow(loan) as array:` takes the
  writer's place, and at its end the value is sealed and its handle sent back, for `fetch/2`: no byte is copied on the
  way. Allocate the region with `slots: 1`.

    * `:dtype` and `:shape` - of the array that is to be filled in. Without them the other process says, or fills bytes

  Meanwhile the region stays what it is: it has an owner, counts, and goes with its owner. It cannot be written here
  (`:segment_busy`). However the other process ends, it stays, and can be lent again, or taken back by
  `take_back_region/2`; what was half filled is discarded. `:segment_busy` while another process has the place,
  `:sealed` when it was filled and sealed.

      iex> alias Snakepit.SharedMemory
      iex> id = SharedMemory.allocate_region!(4096, slots: 1)
      iex> loan = SharedMemory.lend_region!(id, dtype: :f32, shape: [16, 16])
      iex> {loan["name"] == id, loan["dtype"], loan["shape"], loan["size"]}
      {true, "<f4", [16, 16], 4096}
      iex> {:error, %{code: :segment_busy}} = SharedMemory.write(id, "mine")
      iex> SharedMemory.take_back_region!(id)
      iex> SharedMemory.write!(id, "mine")
      2
      iex> SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec lend_region(region(), options()) :: result(map())
  def lend_region(region, opts \\ []), do: noted(:lend_region, Lending.lend(region, opts))

  @doc "Like `lend_region/2`, but returns the loan or raises."
  @spec lend_region!(region(), options()) :: map()
  def lend_region!(region, opts \\ []), do: bang(lend_region(region, opts))

  @doc """
  Takes the writer's place of a region that was lent, once the other process has given it back or died.

  `:segment_busy` while it has it. A region that is not lent stays as it is.
  """
  @spec take_back_region(region(), options()) :: result(id())
  def take_back_region(region, opts \\ []),
    do: noted(:take_back_region, Lending.take_back(region, opts))

  @doc "Like `take_back_region/2`, but returns the id or raises."
  @spec take_back_region!(region(), options()) :: id()
  def take_back_region!(region, opts \\ []), do: bang(take_back_region(region, opts))

  @doc """
  The handle of a sealed region, for others to `fetch/2`.

  It is what `share/2` answers; this is for regions that were allocated, filled and sealed by hand.

      iex> id = Snakepit.SharedMemory.allocate_region!(4096, slots: 1)
      iex> Snakepit.SharedMemory.write!(id, <<1, 2, 3>>, dtype: :u8)
      iex> {:error, %{code: :not_sealed}} = Snakepit.SharedMemory.handle(id)
      iex> Snakepit.SharedMemory.seal!(id)
      iex> {:ok, handle} = Snakepit.SharedMemory.handle(id)
      iex> {handle["name"] == id, handle["shape"], Snakepit.SharedMemory.fetch!(handle)}
      {true, [3], <<1, 2, 3>>}
      iex> Snakepit.SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec handle(region(), options()) :: result(handle())
  def handle(region, opts \\ []), do: noted(:handle, Exchange.handle(region, opts))

  @doc "Like `handle/2`, but returns the handle or raises."
  @spec handle!(region(), options()) :: handle()
  def handle!(region, opts \\ []), do: bang(handle(region, opts))

  @doc """
  Runs `fun` while the calling process alone may write the region, and answers what it returned.

  For changes that take more than one call: a value that is read, changed and written again, or
  several writes that belong together. `fun` is given a `%Snakepit.SharedMemory.Region{}`; it, and the
  region's id, may be written, patched and sealed by the calling process as usual. Every other
  process of this VM is told `:segment_busy` if it writes meanwhile, however it came by the region.
  Reads are not concerned: readers see each value as it is published.

  Who asks first is served first. The right ends with `fun`, however `fun` ends: an exception, a
  throw or an exit goes on to the caller, and the death of the process frees it as well. Inside
  `fun` the same process may call `with_writer/3` on the same region again; the right ends with the
  outermost call. Processes that `fun` starts do not have it.

  A region of another OS process is taken over for the time of `fun`, as soon as its writer has
  given it up or died, and is then given up again. Whether that has happened is looked at
  after 1 ms at first, at most every 50 ms later.

  Options:

    * `:timeout` - milliseconds to wait at most; with 0 it is had at once or not. Default: 5,000. Then the answer is an
      error with code `:timeout`, which names the process that has the right, or `:segment_busy`, when
      another OS process writes the region. Two processes that wait for what the other has are
      freed by this. A single write of another process that is under way is waited for in any case

      iex> alias Snakepit.SharedMemory
      iex> id = SharedMemory.allocate_region!(4096)
      iex> SharedMemory.write!(id, "1")
      iex> add = fn region ->
      ...>   number = String.to_integer(SharedMemory.read!(region))
      ...>   SharedMemory.write!(region, Integer.to_string(number + 1))
      ...>   number
      ...> end
      iex> SharedMemory.with_writer(id, add)
      {:ok, 1}
      iex> SharedMemory.read(id)
      {:ok, "2"}
      iex> SharedMemory.with_writer!(id, [timeout: 100], fn _region ->
      ...>   {:error, error} = Task.await(Task.async(fn -> SharedMemory.write(id, "x") end))
      ...>   error.code
      ...> end)
      :segment_busy
      iex> SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec with_writer(region(), options(), (Region.t() -> value)) :: result(value)
        when value: term()
  def with_writer(region, opts \\ [], fun), do: noted(Exclusive.with_writer(region, opts, fun))

  @doc "Like `with_writer/3`, but returns what `fun` returned or raises."
  @spec with_writer!(region(), options(), (Region.t() -> value)) :: value when value: term()
  def with_writer!(region, opts \\ [], fun), do: bang(with_writer(region, opts, fun))

  # -- what there is --------------------------------------------------------------------------

  @doc """
  What is known about a region.

    * `:id`, `:namespace`, `:size` (capacity in bytes), `:slots`, `:state` (`:active`, `:sealed`, `:closed`)
    * `:orphaned` - whether its writer has died or given it up, and it waits for `adopt_region/2`
    * `:version`, `:bytes` - of the current value (0 before the first); `:generation` - how often the
      writer has changed
    * `:format` - what the value is: `:raw`, `:numpy` or `:arrow_ipc`; `:dtype` and `:shape` of an array,
      else nil. All nil while there is no value, or nobody can attach. Not in `list_regions/1`
    * `:created_at`, `:last_accessed` - `DateTime`; the latter is the last write as far as it is
      known: to the value's timestamp here, to the file's in a list; or the last read by this VM, to
      the second, when that was later
    * `:access_count`, the sum of `:reads`, `:views` (zero-copy binaries that were handed out, and
      reads by a handle) and `:writes`; `:reads_by_id` - reads without a held mapping;
      `:bytes_read`, `:bytes_written` - what this VM has done since the region was allocated, or
      through the mapping that was passed. Nil when that is not known: of other OS processes'
      regions by id, and with `performance_monitoring: false`
    * `:owner_pid`, `:metadata` - nil and `%{}` for regions of other OS processes
    * `:reference_count` - the owner, the mappings and the other references of this VM, see
      `Snakepit.SharedMemory.ReferenceCounter`; `:reader_count` - attached readers of all OS processes
    * `:cleanup_policy`, `:timeout`, `:access_mode`, `:permissions` (as a map), `:security_level`, `:session`,
      `:worker`, `:tags` - as allocated; nil and `[]` for regions of other OS processes
    * `:marked` - whether the last reference has gone and the grace is running
    * `:platform_handle` - the OS process that writes it, its module and its file
    * `:pages`, with the option `pages: true` - how the memory under it is backed. Slow, for all of it is mapped for
      a moment. Bytes: `:bytes` of the file, `:resident` of these in memory, `:huge` of these in huge pages,
      `:huge_possible` where whole ones fit; `:huge_asked` - whether they were asked for; `:numa_policy` in the words
      of numa(7), nil without NUMA, and `:nodes`, bytes by node

      iex> id = Snakepit.SharedMemory.allocate_region!(4096, metadata: %{unit: "K"})
      iex> {:ok, info} = Snakepit.SharedMemory.get_region_info(id)
      iex> {info.size, info.state, info.owner_pid == self(), info.metadata, info.reference_count}
      {4096, :active, true, %{unit: "K"}, 1}
      iex> Snakepit.SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec get_region_info(region(), options()) :: result(map())
  def get_region_info(region, opts \\ []),
    do: noted(:get_region_info, Inspection.info(region, opts))

  @doc "Like `get_region_info/2`, but returns the map or raises."
  @spec get_region_info!(region(), options()) :: map()
  def get_region_info!(region, opts \\ []), do: bang(get_region_info(region, opts))

  @doc """
  All regions of the namespace, of this and of other OS processes, sorted by id.

  Each is a map as from `get_region_info/2`, without `:format`, `:dtype` and `:shape`. Filters, all of which must hold:

    * `:owner` - a pid
    * `:session`, `:worker` - an id; `:tag` - one of its tags
    * `:min_size`, `:max_size` - bounds of its capacity in bytes
    * `:older_than` - created at least so many milliseconds ago
    * `:state` - `:active`, `:sealed` or `:closed`
    * `:orphaned` - `true` for regions whose writer has died or given them up, see `adopt_region/2`
    * `:local` - `true` for regions of this VM, `false` for those of other OS processes
  """
  @spec list_regions(options()) :: result([map()])
  def list_regions(filter \\ []), do: noted(:list_regions, Inspection.list(filter))

  @doc "Like `list_regions/1`, but returns the list or raises."
  @spec list_regions!(options()) :: [map()]
  def list_regions!(filter \\ []), do: bang(list_regions(filter))

  @doc """
  Removes the regions of this VM that belong to a session, whoever owns them, and answers a report.

  `:removed` - their ids; `:failed` - maps with `:id` and `:error`; `:bytes` - how many came free. What
  is allocated while it runs may stay. A session without regions is no error.

      iex> alias Snakepit.SharedMemory
      iex> id = SharedMemory.allocate_region!(4096, session: "doc-session", slots: 1)
      iex> SharedMemory.release_session("doc-session") == {:ok, %{removed: [id], failed: [], bytes: 4096}}
      true
      iex> SharedMemory.list_regions(session: "doc-session")
      {:ok, []}
  """
  @spec release_session(String.t(), options()) :: result(map())
  def release_session(id, opts \\ []),
    do: noted(:release_session, Sessions.release(:session, id, opts))

  @doc "Like `release_session/2`, but returns the report or raises."
  @spec release_session!(String.t(), options()) :: map()
  def release_session!(id, opts \\ []), do: bang(release_session(id, opts))

  @doc "Removes the regions of this VM that belong to a worker, as `release_session/2` does."
  @spec release_worker(String.t(), options()) :: result(map())
  def release_worker(id, opts \\ []),
    do: noted(:release_worker, Sessions.release(:worker, id, opts))

  @doc "Like `release_worker/2`, but returns the report or raises."
  @spec release_worker!(String.t(), options()) :: map()
  def release_worker!(id, opts \\ []), do: bang(release_worker(id, opts))

  @doc """
  Removes what nobody uses any more, now; a region that a living process uses is never touched.

  It goes on by itself while the application runs (`:cleanup_interval` in `Snakepit.SharedMemory.Config`);
  this is for looking first, for other namespaces, and for what is corrupted.

  Options:

    * `:dry_run` - `true` only looks. Default: `false`
    * `:grace` - milliseconds that the region of a crashed process waits for another to take it over,
      counted from when somebody first saw that it is gone. Default: that of the configuration
    * `:min_age` - only regions created at least so many milliseconds ago. Default: 0
    * `:module` - only regions of this module
    * `:pattern` - only regions whose whole id matches: `*` stands for any characters, `?` for one
    * `:corrupted` - `true` also removes what nobody can attach to, whatever the other options say of
      it. Default: `false`

  The report:

    * `:removed` (with a dry run: what would be), `:kept`, `:corrupted` - maps with `:id`, `:reason` and
      `:bytes` (of the file, 0 when not known)
    * `:recovered` - ids of regions that could not be found any more and now can
    * `:cleared_readers` - how many entries of dead readers were cleared

      iex> alias Snakepit.SharedMemory
      iex> id = SharedMemory.allocate_region!(4096)
      iex> {:ok, report} = SharedMemory.cleanup_regions(pattern: id, grace: 0)
      iex> {report.removed, report.corrupted}
      {[], []}
      iex> [%{id: ^id, reason: "written by process " <> _}] = Enum.filter(report.kept, &(&1.id == id))
      iex> SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec cleanup_regions(options()) :: result(map())
  def cleanup_regions(opts \\ []), do: noted(Cleanup.run(opts))

  @doc "Like `cleanup_regions/1`, but returns the report or raises."
  @spec cleanup_regions!(options()) :: map()
  def cleanup_regions!(opts \\ []), do: bang(cleanup_regions(opts))

  @doc """
  Gives back memory that no region needs: what the pool keeps of regions that ended, and what its files have
  beyond the need of the regions in them (R9.4); see `Snakepit.SharedMemory.Pool`. Answers how many bytes that
  were. Regions stay as they are.

      iex> alias Snakepit.SharedMemory
      iex> SharedMemory.allocate_region!(1024 * 1024) |> SharedMemory.deallocate_region!()
      iex> {:ok, bytes} = SharedMemory.defragment()
      iex> bytes >= 0
      true
  """
  @spec defragment() :: result(non_neg_integer())
  def defragment, do: noted(Pool.defragment(:defragment))

  @doc "Like `defragment/0`, but returns the bytes or raises."
  @spec defragment!() :: non_neg_integer()
  def defragment!, do: bang(defragment())

  # -- what was done --------------------------------------------------------------------------

  @doc """
  Counts and times of what this VM has done, see `Snakepit.SharedMemory.Stats`.

      iex> alias Snakepit.SharedMemory
      iex> id = SharedMemory.allocate_region!(4096)
      iex> SharedMemory.write!(id, "counted")
      iex> {:ok, stats} = SharedMemory.stats()
      iex> stats.active_regions >= 1 and stats.operations.write.count >= 1
      true
      iex> stats.allocation_times.p99 > 0
      true
      iex> SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec stats() :: result(Stats.t())
  def stats, do: noted(Stats.snapshot(:stats))

  @doc "Like `stats/0`, but returns the statistics or raises."
  @spec stats!() :: Stats.t()
  def stats!, do: bang(stats())

  @doc """
  Starts the counts of `stats/0` from zero, for all of this VM, and answers what they were.

  Those of single regions in `get_region_info/2` go on.
  """
  @spec reset_stats() :: result(Stats.t())
  def reset_stats, do: noted(Stats.reset())

  @doc "Like `reset_stats/0`, but returns the statistics or raises."
  @spec reset_stats!() :: Stats.t()
  def reset_stats!, do: bang(reset_stats())

  @doc """
  The latest changes of a region, oldest first, but not its writes.

  Each is a map of `:at` (`DateTime`), `:operation`, `:pid` (whose doing it was: the owner, of an
  allocation) and `:details`, a map. Operations are `:allocate` or `:adopt`, `:map` and `:unmap`, `:seal`,
  `:lend` and `:take_back`, and for another OS process's region `:takeover` and `:handover` of the writer's place. As many are kept as
  the configuration key `:history_limit` says, as long as the region is there.

      iex> alias Snakepit.SharedMemory
      iex> id = SharedMemory.allocate_region!(4096)
      iex> region = SharedMemory.map_region!(id)
      iex> SharedMemory.unmap_region!(region)
      iex> {:ok, changes} = SharedMemory.history(id)
      iex> for change <- changes, do: {change.operation, change.pid == self()}
      [allocate: true, map: true, unmap: true]
      iex> SharedMemory.deallocate_region!(id)
      iex> {:error, error} = SharedMemory.history(id)
      iex> error.code
      :not_found
  """
  @spec history(region(), options()) :: result([map()])
  def history(region, opts \\ []), do: noted(:history, History.of(region, opts))

  @doc "Like `history/2`, but returns the list or raises."
  @spec history!(region(), options()) :: [map()]
  def history!(region, opts \\ []), do: bang(history(region, opts))

  @doc """
  What the statistics say should be changed, the most severe first; see
  `Snakepit.SharedMemory.Recommendations`.

      iex> {:ok, recommendations} = Snakepit.SharedMemory.recommendations()
      iex> Enum.all?(recommendations, &(&1.severity in [:critical, :warning, :info]))
      true
  """
  @spec recommendations() :: result([Recommendations.t()])
  def recommendations, do: noted(Recommendations.now())

  @doc "Like `recommendations/0`, but returns the list or raises."
  @spec recommendations!() :: [Recommendations.t()]
  def recommendations!, do: bang(recommendations())

  @doc """
  Looks whether what this library promises holds, and says what does not.

  The report is a map:

    * `:status` - `:ok`; `:degraded` with a finding of severity `:warning`; `:critical` with a critical one
    * `:findings` - each a map with `:check`, `:severity`, `:message`, `:evidence` (a map) and `:remedy`
    * `:checked_at` - a `DateTime`; `:duration_us` - how long it took

  See `Snakepit.SharedMemory.Health` for the checks. Nothing is changed or removed.

  Options, besides `:namespace` and `:dir`:

    * `:timeout` - milliseconds that it takes at most; what could not be checked by then is a finding of
      its own. Default: 5,000

      iex> {:ok, report} = Snakepit.SharedMemory.health_check()
      iex> report.status in [:ok, :degraded, :critical]
      true
      iex> Enum.all?(report.findings, &is_binary(&1.remedy))
      true
  """
  @spec health_check(options()) :: result(Health.report())
  def health_check(opts \\ []), do: noted(:health_check, Health.check(opts, :call))

  @doc "Like `health_check/1`, but returns the report or raises."
  @spec health_check!(options()) :: Health.report()
  def health_check!(opts \\ []), do: bang(health_check(opts))

  # -- changes --------------------------------------------------------------------------------

  @doc """
  Sends messages when the region changes, and answers the reference they carry.

    * `{:snakepit_shm, ref, {:changed, id, version}}` - there is a new value. Changes are coalesced:
      one message for however many there were since the last
    * `{:snakepit_shm, ref, :passive}` - the last of a counted number of messages has been sent
    * `{:snakepit_shm, ref, {:closed, id, code}}` - nothing more will come; `code` is an error code,
      `:closed` when the writer has ended or the region was removed

  Options:

    * `:active` - `true`, or `:once`, or a number of messages, as for sockets; then silence until
      `set_active/2`. Default: `true`
    * `:pid` - who gets them; the subscription ends when that process dies. Default: the caller
    * `:since` - a version: a newer value than that is a change. Default: the current version
  """
  @spec subscribe(region(), options()) :: result(reference())
  def subscribe(region, opts \\ []), do: noted(Subscription.subscribe(region, opts))

  @doc "Like `subscribe/2`, but returns the reference or raises."
  @spec subscribe!(region(), options()) :: reference()
  def subscribe!(region, opts \\ []), do: bang(subscribe(region, opts))

  @doc """
  Sets how many messages a subscription still sends: `true`, `false`, `:once` or a number.

      iex> alias Snakepit.SharedMemory
      iex> id = SharedMemory.allocate_region!(4096)
      iex> ref = SharedMemory.subscribe!(id, active: :once)
      iex> SharedMemory.write!(id, "one")
      iex> receive do {:snakepit_shm, ^ref, {:changed, ^id, version}} -> version end
      2
      iex> SharedMemory.write!(id, "two")
      iex> {:ok, ^ref} = SharedMemory.set_active(ref, :once)
      iex> receive do {:snakepit_shm, ^ref, {:changed, ^id, version}} -> version end
      4
      iex> {:ok, ^ref} = SharedMemory.unsubscribe(ref)
      iex> SharedMemory.deallocate_region!(id) == id
      true
  """
  @spec set_active(reference(), boolean() | :once | pos_integer()) :: result(reference())
  def set_active(ref, active), do: noted(:set_active, Subscription.set_active(ref, active))

  @doc "Like `set_active/2`, but returns the reference or raises."
  @spec set_active!(reference(), boolean() | :once | pos_integer()) :: reference()
  def set_active!(ref, active), do: bang(set_active(ref, active))

  @doc """
  Ends a subscription: no message is sent after this has returned. Ending it twice is fine.
  """
  @spec unsubscribe(reference()) :: result(reference())
  def unsubscribe(ref), do: noted(:unsubscribe, Subscription.unsubscribe(ref))

  @doc "Like `unsubscribe/1`, but returns the reference or raises."
  @spec unsubscribe!(reference()) :: reference()
  def unsubscribe!(ref), do: bang(unsubscribe(ref))

  # -- configuration --------------------------------------------------------------------------

  @doc """
  Changes the configuration while the application runs.

  `changes` are keys of `Snakepit.SharedMemory.Config` with their new values; all others stay. The whole is
  checked first: one bad value, and nothing changes. The answer says of each key that was named

    * `:applied` - it has changed and is in effect
    * `:needs_restart` - it is in effect when the application is started anew
    * `:unchanged` - it had that value already

  What has changed also stands in the application's environment (not in any file), so that it
  holds when the application is started anew. Calls take effect one after the other.

      iex> alias Snakepit.SharedMemory
      iex> {:ok, changed} = SharedMemory.reconfigure(max_regions_per_process: 1_000_000, mode: :real_time)
      iex> changed
      %{applied: [:max_regions_per_process], needs_restart: [], unchanged: [:mode]}
      iex> {:error, error} = SharedMemory.reconfigure(max_regions_per_process: nil, grace: -1)
      iex> error.message
      "invalid option :grace: expected an integer from 0 to 31622400000, got: -1"
      iex> SharedMemory.reconfigure!(max_regions_per_process: nil).applied
      [:max_regions_per_process]
  """
  @spec reconfigure(options()) ::
          result(%{applied: [atom()], needs_restart: [atom()], unchanged: [atom()]})
  def reconfigure(changes), do: noted(:reconfigure, Reconfiguration.run(changes))

  @doc "Like `reconfigure/1`, but returns the map or raises."
  @spec reconfigure!(options()) ::
          %{applied: [atom()], needs_restart: [atom()], unchanged: [atom()]}
  def reconfigure!(changes), do: bang(reconfigure(changes))

  # Every function's answer passes here on its way out: an error gets its context and its line in
  # the log.
  @compile {:inline, noted: 1}
  defp noted({:error, %Error{} = error}), do: {:error, Error.Log.note(error)}
  defp noted(answer), do: answer

  # What is no span is counted here.
  defp noted(operation, answer), do: noted(Recorder.answered(operation, answer))

  defp each_noted({:ok, answers} = ok) do
    for {:error, _error} = failed <- answers, do: noted(failed)
    ok
  end

  defp each_noted(error), do: noted(error)

  defp each_bang(answer), do: answer |> bang() |> Enum.map(&bang/1)

  defp bang({:ok, value}), do: value
  defp bang({:error, error}), do: raise(error)
end
