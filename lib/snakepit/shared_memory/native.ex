defmodule Snakepit.SharedMemory.Native do
  @moduledoc false
  # Stubs of the NIF library `native/nif`, one clause each, and nothing else but `writer_handle/1`, which
  # chooses between two. A wrong type is an ArgumentError; `{:error, :dirty}` asks for the `_dirty` twin; other errors are
  # `{code, message, segment | nil, remedy}`.

  @on_load :load

  @type writer :: reference()
  @type reader :: reference()
  @type subscription :: reference()
  @type membership :: reference()
  @type reaper :: reference()
  @type listing :: reference()
  @type version :: non_neg_integer()
  @type failure :: {atom(), String.t(), String.t() | nil, String.t()}
  @type answer(value) :: {:ok, value} | {:error, failure()}
  @type quick(value) :: answer(value) | {:error, :dirty}

  @typedoc "What the bytes of a value mean."
  @type descriptor :: nil | :arrow_ipc | {:numpy, String.t(), [non_neg_integer()]}

  @typedoc "Where a segment is, and what to create; every key is there, nil where not set."
  @type segment :: %{
          name: String.t(),
          namespace: String.t(),
          dir: String.t(),
          size: non_neg_integer() | nil,
          slots: pos_integer() | nil,
          max_readers: pos_integer() | nil,
          integrity: :none | :crc32c | nil,
          notify: boolean() | nil,
          timestamps: :off | :coarse | :precise | nil,
          reserve: :eager | :lazy | nil,
          permissions: non_neg_integer() | nil,
          schema_id: non_neg_integer() | nil,
          prefault: boolean() | nil,
          huge_pages: :prefer | :require | nil,
          lock_memory: boolean() | nil,
          numa: {:bind | :interleave, [non_neg_integer()]} | nil,
          pooled: boolean() | nil,
          tenant: String.t() | nil,
          incarnation: String.t() | nil
        }

  @typedoc "A region that was given away and is taken over, and for how many milliseconds it was to be had."
  @type taken :: %{
          writer: writer(),
          size: pos_integer(),
          slots: pos_integer(),
          permissions: non_neg_integer(),
          ttl: pos_integer()
        }

  @typedoc "What a cleanup looks at; times in milliseconds."
  @type wanted :: %{
          namespace: String.t(),
          dir: String.t(),
          grace: non_neg_integer(),
          min_age: non_neg_integer(),
          module: String.t() | nil,
          pattern: String.t() | nil,
          dry_run: boolean(),
          corrupted: boolean()
        }

  @typedoc "What a reaper watches; times in milliseconds, nil for the default of the mode."
  @type watch :: %{
          namespace: String.t(),
          dir: String.t(),
          mode: :real_time | :simulation,
          grace: non_neg_integer(),
          interval: pos_integer() | nil
        }

  # -- segments: work on files, dirty ---------------------------------------------------------

  @spec create(segment()) :: answer(writer())
  def create(_segment), do: stub()

  @spec attach(segment()) :: answer(reader())
  def attach(_segment), do: stub()

  @spec attach_beside(segment(), writer()) :: answer(reader())
  def attach_beside(_segment, _writer), do: stub()

  @spec attach_writer(segment()) :: answer(writer())
  def attach_writer(_segment), do: stub()

  # Of the size and the slots that the segment names; a sealed one, too.
  @spec adopt(segment()) :: answer(writer())
  def adopt(_segment), do: stub()

  @spec remove(segment()) :: answer(:ok)
  def remove(_segment), do: stub()

  @spec inspect_segment(segment()) :: answer(map())
  def inspect_segment(_segment), do: stub()

  @spec inspect_pages(segment()) :: answer(map())
  def inspect_pages(_segment), do: stub()

  # The version, and how many readers of other, living OS processes are attached.
  @spec usage(segment()) :: answer({version(), non_neg_integer()})
  def usage(_segment), do: stub()

  # What there is, and the names of what nobody can attach to.
  @spec list(String.t(), String.t()) :: answer({[map()], [String.t()]})
  def list(_namespace, _dir), do: stub()

  @spec open_listing(String.t(), String.t()) :: answer(listing())
  def open_listing(_namespace, _dir), do: stub()

  @spec list_kept(listing()) :: answer({[map()], [String.t()]})
  def list_kept(_listing), do: stub()

  @spec tidy_listing(listing(), non_neg_integer()) :: :ok
  def tidy_listing(_listing, _idle_ms), do: stub()

  @spec round_up_capacity(non_neg_integer()) :: answer(pos_integer())
  def round_up_capacity(_bytes), do: stub()

  # -- writers --------------------------------------------------------------------------------

  @spec write(writer(), iodata(), descriptor()) :: quick(version())
  def write(_writer, _data, _descriptor), do: stub()

  # Refused while calls are told to others; of plain bytes.
  @spec write_quick(writer(), iodata()) :: quick(version()) | {:error, :traced}
  def write_quick(_writer, _data), do: stub()

  @spec write_dirty(writer(), iodata(), descriptor()) :: answer(version())
  def write_dirty(_writer, _data, _descriptor), do: stub()

  @spec write_at(writer(), non_neg_integer(), binary()) :: quick(version())
  def write_at(_writer, _offset, _data), do: stub()

  @spec write_at_dirty(writer(), non_neg_integer(), binary()) :: answer(version())
  def write_at_dirty(_writer, _offset, _data), do: stub()

  @spec seal(writer()) :: quick(version())
  def seal(_writer), do: stub()

  @spec seal_dirty(writer()) :: answer(version())
  def seal_dirty(_writer), do: stub()

  # Filling a new region of one slot piece by piece, before it has a value; answers where the next
  # piece goes.

  @spec fill(writer(), non_neg_integer(), iodata()) :: quick(non_neg_integer())
  def fill(_writer, _offset, _data), do: stub()

  @spec fill_dirty(writer(), non_neg_integer(), iodata()) :: answer(non_neg_integer())
  def fill_dirty(_writer, _offset, _data), do: stub()

  @spec fill_file(writer(), binary(), non_neg_integer()) :: answer(non_neg_integer())
  def fill_file(_writer, _path, _len), do: stub()

  @spec fill_from(writer(), writer(), non_neg_integer()) :: answer(non_neg_integer())
  def fill_from(_larger, _smaller, _len), do: stub()

  @spec fill_publish(writer(), non_neg_integer(), descriptor()) :: answer(version())
  def fill_publish(_writer, _len, _descriptor), do: stub()

  # The writer's place for another OS process, until it is taken back. Answers the segment's token.

  @spec lend(writer()) :: answer(String.t())
  def lend(_writer), do: stub()

  @spec take_back(writer()) :: answer(:ok)
  def take_back(_writer), do: stub()

  @spec is_lent(writer()) :: boolean()
  def is_lent(_writer), do: stub()

  # The exclusive right of one BEAM process; no other's `write`, `write_at` or `seal` gets through.

  @spec hold_writer(writer(), pid()) :: answer(:ok)
  def hold_writer(_writer, _pid), do: stub()

  @spec free_writer(writer(), pid()) :: answer(:ok)
  def free_writer(_writer, _pid), do: stub()

  @spec settle_writer(writer()) :: quick(:ok)
  def settle_writer(_writer), do: stub()

  @spec settle_writer_dirty(writer()) :: answer(:ok)
  def settle_writer_dirty(_writer), do: stub()

  @spec writer_binary(writer()) :: answer(binary())
  def writer_binary(_writer), do: stub()

  @spec writer_handle(writer()) :: answer(map())
  def writer_handle(writer) do
    with {:error, :dirty} <- writer_handle_now(writer), do: writer_handle_dirty(writer)
  end

  @spec writer_handle_now(writer()) :: quick(map())
  def writer_handle_now(_writer), do: stub()

  @spec writer_handle_dirty(writer()) :: answer(map())
  def writer_handle_dirty(_writer), do: stub()

  @spec discard(writer()) :: answer(:ok)
  def discard(_writer), do: stub()

  @spec release(writer()) :: answer(:ok)
  def release(_writer), do: stub()

  # -- readers --------------------------------------------------------------------------------

  @spec read(reader()) :: quick(binary())
  def read(_reader), do: stub()

  # Refused while calls are told to others.
  @spec read_quick(reader()) :: quick(binary()) | {:error, :traced}
  def read_quick(_reader), do: stub()

  @spec read_dirty(reader()) :: answer(binary())
  def read_dirty(_reader), do: stub()

  @spec read_range(reader(), non_neg_integer(), non_neg_integer() | nil) :: quick(binary())
  def read_range(_reader, _offset, _length), do: stub()

  @spec read_range_dirty(reader(), non_neg_integer(), non_neg_integer() | nil) :: answer(binary())
  def read_range_dirty(_reader, _offset, _length), do: stub()

  @spec check_age(reader(), non_neg_integer()) :: answer(:ok)
  def check_age(_reader, _max_age_ms), do: stub()

  @spec reader_info(reader()) :: answer(map())
  def reader_info(_reader), do: stub()

  @spec reader_version(reader()) :: answer(version())
  def reader_version(_reader), do: stub()

  @spec reader_binary(reader()) :: answer(binary())
  def reader_binary(_reader), do: stub()

  @spec reader_pin(reader()) :: answer({binary(), in_place? :: boolean()})
  def reader_pin(_reader), do: stub()

  @spec reader_handle(reader()) :: answer(map())
  def reader_handle(_reader), do: stub()

  @spec share_reader(reader()) :: answer(reader())
  def share_reader(_reader), do: stub()

  @spec close_reader(reader()) :: answer(:ok)
  def close_reader(_reader), do: stub()

  # -- many at once -------------------------------------------------------------------------

  # Refused while calls are told to others. nil for what is no reader; true when all have a value.
  @spec read_many([reader() | term()]) ::
          quick({boolean(), [answer(binary()) | nil]}) | {:error, :traced}
  def read_many(_readers), do: stub()

  @spec read_many_dirty([reader() | term()]) ::
          answer({boolean(), [answer(binary()) | nil]}) | {:error, :traced}
  def read_many_dirty(_readers), do: stub()

  # Of as many of the first as could be written without waiting; true when all of them are written.
  @spec write_many([writer() | term()], [term()]) ::
          quick({boolean(), [answer(version())]}) | {:error, :traced}
  def write_many(_writers, _values), do: stub()

  @spec write_many_dirty([writer() | term()], [term()]) ::
          answer({boolean(), [answer(version())]}) | {:error, :traced}
  def write_many_dirty(_writers, _values), do: stub()

  # -- memory that is used again --------------------------------------------------------------

  @type buffer :: reference()

  @spec buffer(pos_integer(), pos_integer()) :: answer(buffer())
  def buffer(_size, _copies), do: stub()

  @spec read_into(reader(), buffer()) :: quick(binary())
  def read_into(_reader, _buffer), do: stub()

  @spec read_into_dirty(reader(), buffer()) :: answer(binary())
  def read_into_dirty(_reader, _buffer), do: stub()

  @spec copy_into(buffer(), binary()) :: answer(binary())
  def copy_into(_buffer, _binary), do: stub()

  @spec buffer_pieces(buffer()) :: non_neg_integer()
  def buffer_pieces(_buffer), do: stub()

  # -- handles --------------------------------------------------------------------------------

  @spec open_handle(map(), String.t()) :: answer(binary())
  def open_handle(_handle, _dir), do: stub()

  # And whether it was given away and nobody has taken it.
  @spec fetch_handle(map(), String.t(), :no | :yes | :pooled) ::
          answer({binary(), nil | true | taken()})
  def fetch_handle(_handle, _dir, _taking), do: stub()

  @spec hand_back(writer(), pos_integer()) :: answer(:ok)
  def hand_back(_writer, _ttl_ms), do: stub()

  @spec parse_handle(map()) :: answer({String.t(), String.t()})
  def parse_handle(_handle), do: stub()

  # Of an array in Fortran's order; `item` is the size of an element.
  @spec in_c_order(binary(), [non_neg_integer()], pos_integer()) :: binary()
  def in_c_order(_data, _shape, _item), do: stub()

  # Its memory comes into the VM's pool where that may be and the last argument says so.
  @spec remove_handle(map(), String.t(), boolean()) :: answer(:ok)
  def remove_handle(_handle, _dir, _pooled), do: stub()

  # The same of what has no writer; whoever has taken it keeps it.
  @spec finish_handle(map(), String.t(), boolean()) :: answer(:ok)
  def finish_handle(_handle, _dir, _pooled), do: stub()

  # -- the pool -------------------------------------------------------------------------------

  @type pool_limits :: %{
          max_idle_bytes: non_neg_integer(),
          idle_timeout: non_neg_integer(),
          strategy: :first_fit | :best_fit | :worst_fit,
          zero: :never | :between_sessions | :always
        }

  @spec configure_pool(String.t(), String.t(), pool_limits()) :: answer(:ok)
  def configure_pool(_namespace, _dir, _limits), do: stub()

  # All of this OS process.
  @spec drain_pools() :: :ok
  def drain_pools, do: stub()

  @spec pool_stats(String.t(), String.t()) :: answer(map())
  def pool_stats(_namespace, _dir), do: stub()

  # Bytes given back; idle memory, too, if the last argument says so.
  @spec defragment_pool(String.t(), String.t(), boolean()) :: answer(non_neg_integer())
  def defragment_pool(_namespace, _dir, _idle_too), do: stub()

  # -- subscriptions --------------------------------------------------------------------------

  @spec subscribe(reader(), pid(), version(), boolean() | :once | pos_integer()) ::
          answer(subscription())
  def subscribe(_reader, _pid, _since, _active), do: stub()

  @spec set_active(subscription(), boolean() | :once | pos_integer()) :: :ok
  def set_active(_subscription, _active), do: stub()

  @spec unsubscribe(subscription()) :: :ok
  def unsubscribe(_subscription), do: stub()

  # -- who is alive ---------------------------------------------------------------------------

  @spec join(String.t(), String.t()) :: answer(membership())
  def join(_namespace, _dir), do: stub()

  @spec set_grace(String.t(), String.t(), non_neg_integer()) :: answer(:ok)
  def set_grace(_namespace, _dir, _grace_ms), do: stub()

  @spec leave(membership()) :: :ok
  def leave(_membership), do: stub()

  @spec cleanup(wanted()) :: answer(map())
  def cleanup(_wanted), do: stub()

  @spec start_reaper(watch(), pid()) :: answer(reaper())
  def start_reaper(_watch, _pid), do: stub()

  @spec reaper_stats(reaper()) :: answer(map())
  def reaper_stats(_reaper), do: stub()

  @spec sweep_now(reaper()) :: answer(:ok)
  def sweep_now(_reaper), do: stub()

  @spec stop_reaper(reaper()) :: :ok
  def stop_reaper(_reaper), do: stub()

  # -- the machine ----------------------------------------------------------------------------

  @spec capabilities(String.t()) :: answer(map())
  def capabilities(_dir), do: stub()

  # -- what has been counted ------------------------------------------------------------------

  @typedoc "`:last` is Unix time in seconds, 0 for never."
  @type accesses :: %{calls: non_neg_integer(), bytes: non_neg_integer(), last: non_neg_integer()}

  @spec monitor(boolean()) :: :ok
  def monitor(_on), do: stub()

  @spec trace(boolean()) :: :ok
  def trace(_on), do: stub()

  @spec tick() :: :ok
  def tick, do: stub()

  @typedoc "Through the first reader of a mapping, and through those that share it."
  @type reads :: %{first: accesses(), shared: accesses()}

  @spec reads(reader()) :: answer(reads())
  def reads(_reader), do: stub()

  @spec accesses(writer()) ::
          answer(%{
            reads: reads(),
            writes: accesses(),
            views: accesses(),
            value_bytes: non_neg_integer()
          })
  def accesses(_writer), do: stub()

  @spec viewed(writer(), non_neg_integer()) :: :ok
  def viewed(_writer, _bytes), do: stub()

  @spec time_bucket(non_neg_integer()) :: non_neg_integer()
  def time_bucket(_ns), do: stub()

  @spec totals() :: %{read: map(), write: map()}
  def totals, do: stub()

  # -- health ---------------------------------------------------------------------------------

  @spec guard_state() :: :not_installed | :in_front | :covered
  def guard_state, do: stub()

  @spec space(String.t()) :: answer(%{total: non_neg_integer(), available: non_neg_integer()})
  def space(_dir), do: stub()

  # -- the library itself ---------------------------------------------------------------------

  @spec error_codes() :: [String.t()]
  def error_codes, do: stub()

  @doc false
  def load do
    path = Application.app_dir(:snakepit_shared_memory, "priv/native/snakepit_shm_nif")

    case :erlang.load_nif(String.to_charlist(path), 0) do
      :ok ->
        :ok

      {:error, {reason, _text}} when reason in [:reload, :upgrade] ->
        IO.puts(
          :stderr,
          "A running VM keeps the NIF library it has; restart it to load a new one."
        )

        {:error, reason}

      {:error, {reason, text}} ->
        IO.puts(:stderr, """
        The NIF library of :snakepit_shared_memory could not be loaded (#{reason}):
          #{text}
        It is built from Rust source by `mix compile`. If it is missing or was built for another
        machine, run `mix compile --force` where cargo is installed.
        """)

        {:error, {reason, text}}
    end
  end

  defp stub, do: :erlang.nif_error(:nif_not_loaded)
end
