defmodule Snakepit.SharedMemory.Platform do
  @moduledoc """
  What the operating system gives, behind one behaviour.

  Linux is what this library runs on (`Snakepit.SharedMemory.Platform.Linux`). Others have an
  implementation that answers each call by an error with code `:unsupported` and the limitation.

  The callbacks are the bare segments underneath regions: nobody owns them, counts them or removes
  them with a process, and they are not in the registry. Applications use `Snakepit.SharedMemory`; this is
  for tools, and for finding out what a machine can do:

      iex> alias Snakepit.SharedMemory.Platform
      iex> Platform.detect_platform()
      :linux
      iex> Platform.get_implementation(:linux)
      Snakepit.SharedMemory.Platform.Linux
      iex> {:error, error} = Platform.get_implementation(:macos).capabilities("/tmp")
      iex> {error.code, error.message}
      {:unsupported, "shared memory is not supported on macOS: the core has no platform layer for it yet"}
  """

  alias Snakepit.SharedMemory.{Config, Error}

  @typedoc "`:other` is any system that is none of the first three."
  @type platform :: :linux | :macos | :windows | :other

  @typedoc "A segment that this VM writes."
  @type platform_handle :: term()

  @typedoc "A mapping for reading. No address: bytes are only read through the library's checks."
  @type mapping :: term()

  @type result(value) :: {:ok, value} | {:error, Error.t()}

  @doc "Creates a segment. Options: `:namespace` and `:dir`, both needed, and `:slots`, `:permissions`."
  @callback allocate(region_id :: String.t(), size :: pos_integer(), options :: map()) ::
              result(platform_handle())

  @doc """
  Maps a segment for reading. `:access_mode` is `:read_only`, which is also the default: `:read_write`
  is refused with code `:unsupported`, for a segment has one writer, and that is the handle itself.
  """
  @callback map(platform_handle(), options :: map()) :: result(mapping())

  @doc "Gives a mapping back; `size` is that of the segment."
  @callback unmap(mapping(), size :: pos_integer()) :: :ok | {:error, Error.t()}

  @doc "Removes the segment."
  @callback deallocate(platform_handle()) :: :ok | {:error, Error.t()}

  @doc """
  What is known about the segment, from shared memory itself; and of its file `:name`, `:actual_size`,
  `:access_time`, `:modify_time` (`DateTime`) and `:permissions` (its mode).
  """
  @callback get_info(platform_handle()) :: result(map())

  @doc "What the machine can do in a directory, each thing tried."
  @callback capabilities(dir :: String.t()) :: result(map())

  @doc "The platform that this VM runs on."
  @spec detect_platform() :: platform()
  def detect_platform do
    case :os.type() do
      {:unix, :linux} -> :linux
      {:unix, :darwin} -> :macos
      {:win32, _name} -> :windows
      _ -> :other
    end
  end

  @doc "The module that implements the behaviour for a platform."
  @spec get_implementation(platform()) :: module()
  def get_implementation(:linux), do: Snakepit.SharedMemory.Platform.Linux
  def get_implementation(:macos), do: Snakepit.SharedMemory.Platform.MacOS
  def get_implementation(:windows), do: Snakepit.SharedMemory.Platform.Windows
  def get_implementation(:other), do: Snakepit.SharedMemory.Platform.Other

  def get_implementation(platform) do
    raise ArgumentError,
          "unknown platform #{inspect(platform, limit: 5)}, " <>
            "expected :linux, :macos, :windows or :other"
  end

  @doc """
  What this machine can do in the configured directory.

      iex> {:ok, found} = Snakepit.SharedMemory.Platform.capabilities()
      iex> {found.platform, found.page_size >= 4096, found.file_locks}
      {:linux, true, true}
  """
  @spec capabilities() :: result(map())
  def capabilities do
    with {:ok, config} <- Config.fetch(:capabilities) do
      get_implementation(detect_platform()).capabilities(config.dir)
    end
  end
end
